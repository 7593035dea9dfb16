"""The graph of a study: identity, de-duplication, and where the test split may stand."""

from pathlib import Path

import pytest

from chexseg_ray.config.parse import parse_config
from chexseg_ray.study.graph import Study, study_graph
from chexseg_ray.study.points import named_points, sweep_points

TEXT = (Path(__file__).resolve().parents[1] / "tiny.yaml").read_text(encoding="utf-8")
SOURCES = {
    name: name for name in ("weak_csv", "expert_csv", "expert_masks", "test_csv", "test_masks", "benchmark_masks")
}


def graph(*overrides: str, sources: dict[str, str] | None = None, files: dict[str, str] | None = None) -> Study:
    return study_graph(parse_config(TEXT, list(overrides)), sources or {}, files)


def addresses(study: Study) -> set[str]:
    return {step.address for step in study.steps()}


@pytest.mark.parametrize(
    "overrides",
    [[], ["data.root=/d"], ["data.root=/d", "data.test_csv=null", "data.test_masks=null", "data.num_test=4"]],
)
def test_the_test_split_is_no_ancestor_of_anything_that_trains_tunes_or_chooses(overrides: list[str]) -> None:
    study = graph(
        *overrides,
        "sweep.p=[0, 0.5, 1]",
        "sweep.init=[random, chexpert, moco]",
        "sweep.method=[gradcam, irnet]",
        sources=SOURCES,
    )
    assert any(step.config.get("split") == "test" for step in study.steps())
    for step in study.steps():
        if step.name in ("classifier", "moco", "cams", "irnet", "propagation", "pseudo_masks", "segmentation"):
            splits = {ancestor.config.get("split") for ancestor in step.ancestors()}
            assert "test" not in splits, step.address


def test_changed_test_masks_leave_every_training_where_it_is() -> None:
    before = graph("data.root=/d", sources=SOURCES)
    after = graph("data.root=/d", sources=SOURCES | {"test_masks": "permuted"})
    changed = [step for step in after.steps() if step.address not in addresses(before)]
    assert {step.name for step in changed} == {"manifest", "images", "evaluation", "benchmark"}
    assert {step.config["split"] for step in changed if "split" in step.config} == {"test"}


@pytest.mark.parametrize(
    "override",
    [
        "store.root=/elsewhere",
        "data.max_reject_fraction=0.5",
        "data.allow_expert_rejects=true",
        "report.title=other",
        "report.interval_level=0.9",
        "compute.max_failures=7",
        "compute.state_seconds=1",
        "compute.segmentation={num_workers: 0, num_cpus: {4: 2, 8: 2}, num_gpus: 0, threads: 2}",
        "compute.rates.gpu_hour=3.0",
        "pretraining.download=true",
        "compute.classifier={num_workers: 1, num_cpus: 2, num_gpus: 0, threads: 2}",
    ],
)
def test_where_and_how_fast_a_step_runs_is_not_hashed(override: str) -> None:
    assert addresses(graph(override)) == addresses(graph())


def test_the_data_root_is_not_hashed_but_its_sources_are() -> None:
    assert addresses(graph("data.root=/a", sources=SOURCES)) == addresses(graph("data.root=/b", sources=SOURCES))
    other = graph("data.root=/a", sources=SOURCES | {"weak_csv": "other"})
    steps = graph("data.root=/a", sources=SOURCES).upstream()
    assert not addresses(other) & {step.address for step in steps if step.name == "classifier"}


def test_an_extended_sweep_keeps_what_it_had() -> None:
    base = graph("sweep.p=[0.5, 1]", "sweep.weak_n=[4]")
    for override in (
        "sweep.p=[0.25, 0.5, 1]",
        "sweep.trials=3",
        "sweep.weak_n=[4, 8]",
        "sweep.init=[chexpert, random]",
    ):
        rest = [o for o in ("sweep.p=[0.5, 1]", "sweep.weak_n=[4]") if o.split("=")[0] != override.split("=")[0]]
        assert addresses(base) < addresses(graph(*rest, override)), override


def test_points_that_are_one_training_are_one_point() -> None:
    config = parse_config(TEXT, ["sweep.p=[0, 0.5, 1]", "sweep.weak_n=[4, 8]", "sweep.init=[random, chexpert]"])
    points = sweep_points(config)
    # inits x trials x (two values of p x two sizes, and p = 1 once)
    assert len(points) == len(set(points)) == 2 * 2 * (2 * 2 + 1)
    assert all(point.method is None and point.weak_n == 0 for point in points if point.p == 1)


def test_updates_and_learning_rate_are_equal_for_every_p_of_one_weak_n() -> None:
    study = graph(
        "sweep.p=[0, 0.5, 0.9, 1]",
        "sweep.weak_n=[4, 8]",
        "segmentation.num_updates={4: 10, 8: 20}",
        "segmentation.learning_rate={4: 1e-3, 8: 1e-4}",
    )
    seen = {
        (p.weak_n, s.inputs["segmentation"].config["num_updates"], s.inputs["segmentation"].config["learning_rate"])
        for p, s in study.points
    }
    assert seen == {(4, 10, 1e-3), (8, 20, 1e-4), (0, 10, 1e-3)}


def test_p_1_is_trained_once_for_both_methods() -> None:
    study = graph("sweep.method=[gradcam, irnet]", "sweep.p=[0, 0.5, 1]")
    assert len(study.points) == 2 * 2 * 2 + 2  # methods x p below 1 x trials, and p = 1 x trials
    trainings = {step.inputs["segmentation"].address for _, step in study.points}
    assert len(trainings) == len(study.points)


def test_both_methods_share_classifier_and_cams_and_irnet_is_trained_once() -> None:
    study = graph("sweep.method=[gradcam, irnet]", "sweep.p=[0, 0.5]", "sweep.init=[random, chexpert]")
    names = [step.name for step in study.steps()]
    expected = {"cams": 1, "irnet": 1, "propagation": 1, "pseudo_masks": 2}
    assert {name: names.count(name) for name in expected} == expected
    masks = {step.config["method"]: step for step in study.steps() if step.name == "pseudo_masks"}
    assert masks["irnet"].inputs["cams"].inputs["cams"].address == masks["gradcam"].inputs["cams"].address
    without = addresses(graph("sweep.method=[gradcam]", "sweep.p=[0, 0.5]", "sweep.init=[random, chexpert]"))
    assert without < addresses(study), "a sweep without IRNet stays where it is"


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("irnet.num_updates=7", {"irnet", "propagation"}),
        ("irnet.random_walk=irn", {"propagation"}),
        ("irnet.flip_average=false", {"propagation"}),
        ("pseudo_masks.grid_step=0.1", set()),
        ("compute.irnet={num_workers: 2, num_cpus: 1, num_gpus: 1, threads: 1}", set()),
    ],
)
def test_irnet_and_propagation_hash_what_shapes_them(override: str, changed: set[str]) -> None:
    base, other = graph("sweep.method=[irnet]"), graph("sweep.method=[irnet]", override)
    names = {step.name for step in other.steps() if step.address not in addresses(base)}
    assert names & {"irnet", "propagation", "cams"} == changed


def test_a_random_walk_is_its_numbers_whatever_its_name() -> None:
    named = graph("sweep.method=[irnet]")
    spelled = graph("sweep.method=[irnet]", "irnet.random_walk={radius: 3, beta: 5.0, steps: 8}")
    assert addresses(named) == addresses(spelled)


def encoders(*overrides: str, **files: str) -> list[dict[str, object]]:
    study = graph(*overrides, files={f"/{name}": sha256 for name, sha256 in files.items()})
    return [dict(step.config) for step in study.steps() if step.name == "encoder"]


def test_encoder_weights_are_identified_by_what_they_are() -> None:
    names = list(parse_config(TEXT).data.pathologies)
    assert encoders("sweep.method=[irnet]") == []
    imagenet = {"architecture": "resnet50", "source": "imagenet"}
    assert encoders("sweep.method=[irnet]", "irnet.encoder=imagenet") == [imagenet]
    one = {"architecture": "resnet50", "source": "file", "sha256": "abc", "pathologies": names}
    assert encoders("sweep.method=[irnet]", "irnet.encoder=/w", w="abc") == [one]
    told = "pretraining.normalisation={/w: chexpert}"
    found = encoders("sweep.method=[irnet]", "irnet.encoder=/w", told, w="abc")
    assert found == [one | {"normalisation": "chexpert"}]


def test_every_training_begins_where_its_init_says() -> None:
    study = graph(
        "sweep.init=[random, imagenet, moco, chexpert, /w]",
        "moco.init=imagenet",
        "encoder_classifier.init=/w",
        files={"/w": "abc"},
    )
    made_of = {point.init: step.inputs["segmentation"].inputs.get("encoder") for point, step in study.points}
    assert made_of["random"] is None
    names = {init: step.name for init, step in made_of.items() if step}
    assert names == {"imagenet": "encoder", "moco": "moco", "chexpert": "classifier", "/w": "encoder"}
    assert made_of["moco"].inputs["encoder"].address == made_of["imagenet"].address, (
        "ImageNet's weights are one step, whoever begins with them"
    )
    assert made_of["chexpert"].inputs["encoder"].address == made_of["/w"].address
    assert {step.config["architecture"] for step in made_of.values() if step} == {"resnet18"}
    assert "init" not in made_of["moco"].config, "a path is no identity"


def test_an_imagenet_file_that_is_named_is_its_content() -> None:
    found = encoders("sweep.init=[imagenet]", "pretraining.imagenet_files={resnet18: /w}", w="abc")
    assert [(step["source"], step["sha256"], step["trained_on"]) for step in found] == [("file", "abc", "imagenet")]


def test_a_normalisation_is_hashed_where_it_is_read() -> None:
    inits = "sweep.init=[random, moco]"
    before, after = graph(inits), graph(inits, "segmentation.normalisation=chexpert")
    moved = {
        point.init
        for (point, step), (_, other) in zip(before.points, after.points, strict=True)
        if step.address != other.address
    }
    assert moved == {"random"}, "other encoders bring their own"


def test_moco_hashes_what_shapes_it() -> None:
    base = graph("sweep.init=[moco]")
    for override, same in (
        ("moco.temperature=0.1", False),
        ("moco.num_replicas=2", False),
        ("sweep.trials=1", True),
        ("compute.moco={num_workers: 1, num_cpus: 1, num_gpus: 1, threads: 1}", True),
    ):
        other = {s.address for s in graph("sweep.init=[moco]", override).steps() if s.name == "moco"}
        assert (other == {s.address for s in base.steps() if s.name == "moco"}) == same, override


def test_grids_are_added_up_and_their_axes_are_the_sweeps_own_where_they_name_none() -> None:
    also = "sweep.also=[{p: [1], init: [random, moco]}, {p: [0], weak_n: [4, 8], method: [gradcam]}]"
    grid = ["sweep.p=[0.5, 1]", "sweep.method=[gradcam, irnet]", "sweep.init=[chexpert]", "sweep.weak_n=[8]"]
    config = parse_config(TEXT, [*grid, "sweep.trials=1", also])
    found = {(p.method, p.p, p.init, p.weak_n) for p in sweep_points(config)}
    assert found == {
        ("gradcam", 0.5, "chexpert", 8),
        ("irnet", 0.5, "chexpert", 8),
        (None, 1.0, "chexpert", 0),
        (None, 1.0, "random", 0),
        (None, 1.0, "moco", 0),
        ("gradcam", 0.0, "chexpert", 4),
        ("gradcam", 0.0, "chexpert", 8),
    }
    assert len(named_points(config)) == 4 + 4 + 2


def test_an_annotation_budget_changes_what_is_tuned_and_trained_and_nothing_above() -> None:
    study = graph("sweep.p=[0.5]", "sweep.num_expert=[2, 4]", "sweep.trials=2", "sweep.init=[random]")
    names = [step.name for step in study.steps()]
    assert names.count("segmentation") == 4
    assert names.count("pseudo_masks") == 4, "thresholds are tuned on each budget's own masks, trial by trial"
    assert names.count("cams") == names.count("classifier") == 1
    for point, step in study.points:
        training = step.inputs["segmentation"]
        assert training.config["num_expert"] == training.inputs["pseudo_masks"].config["num_expert"] == point.num_expert
        assert training.inputs["pseudo_masks"].config["trial"] == point.trial


def test_architectures_and_encoders_are_axes_and_each_encoder_has_its_own_upstream() -> None:
    study = graph(
        "segmentation.architecture=[deeplabv3plus, unet]",
        "segmentation.encoder=[resnet18, resnet34]",
        "sweep.init=[chexpert]",
        "sweep.p=[1]",
    )
    assert len(study.points) == 2 * 2 * 2
    assert {s.config["architecture"] for s in study.steps() if s.name == "classifier"} == {"resnet18", "resnet34"}
    for point, step in study.points:
        config = step.inputs["segmentation"].config
        assert (config["architecture"], config["encoder"]) == (point.architecture, point.encoder)
        assert ("atrous_rates" in config) == (point.architecture == "deeplabv3plus"), "hashed where it is read"
        assert ("unet" in point.label or "resnet34" in point.label) == (
            (point.architecture, point.encoder) != ("deeplabv3plus", "resnet18")
        )
    assert len({point.label for point, _ in study.points}) == len(study.points)


def test_p_1_needs_no_weak_image() -> None:
    study = graph("sweep.p=[1]", "sweep.init=[random]")
    splits = {step.config["split"] for step in study.steps() if "split" in step.config}
    assert splits == {"expert_train", "validation", "test"}
