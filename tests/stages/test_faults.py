"""Bad data, bad trials, busy stores: exit codes and one-line errors. Config and data errors come before Ray."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from studies import TINY, Job, the_error, tiny

from chexseg_ray.engine.execution import make_execution
from chexseg_ray.errors import InputError
from chexseg_ray.store.store import Store
from chexseg_ray.study.sources import load_study
from chexseg_ray.sweep.build import build
from chexseg_ray.sweep.run import run_study

pytestmark = pytest.mark.ray

ROOT = "CheXpert-v1.0"


def no_ray() -> None:
    raise AssertionError("Ray was started")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def a_row(root: Path, name: str) -> str:
    return (root / ROOT / name).read_text().splitlines()[1]


def escape_by_link(root: Path) -> None:
    image = next((root / ROOT / "train").rglob("*.jpg"))
    image.unlink()
    image.symlink_to("/etc/passwd")


def share_a_patient(root: Path) -> None:
    weak, expert = (a_row(root, name).split("/")[2] for name in ("train.csv", "valid.csv"))
    edit(root / ROOT / "train.csv", weak, expert)


def shrink_an_expert_image(root: Path) -> None:
    for file in (root / ROOT / "valid").rglob("*.jpg"):
        with Image.open(file) as image:
            small = image.resize((50, 40))
        small.save(file)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "path outside": (lambda r: edit(r / ROOT / "train.csv", f"{ROOT}/train/", "../../etc/"), "leaves the data root"),
    "link outside": (escape_by_link, "leads out of the data root through a link"),
    "missing column": (lambda r: edit(r / ROOT / "train.csv", "Edema", "Oedema"), "has no column 'Edema'"),
    "shared patient": (share_a_patient, "share 1 patients"),
    "no rows": (
        lambda r: (r / ROOT / "valid.csv").write_text((r / ROOT / "valid.csv").read_text().splitlines()[0] + "\n"),
        "has no rows",
    ),
    "unknown id": (
        lambda r: edit(r / "CheXlocalize" / "gt_segmentations_val.json", '"patient', '"xpatient'),
        "ids are not in",
    ),
    "missing pathology": (
        lambda r: edit(r / "CheXlocalize" / "gt_segmentations_val.json", '"Edema"', '"Oedema"'),
        "Edema: is missing",
    ),
    "long rle": (
        lambda r: edit(r / "CheXlocalize" / "gt_segmentations_test.json", '"size":[', '"size":[1'),
        "runs cover",
    ),
    "other size": (shrink_an_expert_image, "its masks are .* pixels, the image 40 x 50"),
    "no file": (lambda r: (r / "CheXlocalize" / "gt_segmentations_test.json").unlink(), "data.test_masks"),
}


@pytest.fixture
def user_root(phantom_root: Path, tmp_path: Path) -> Path:
    """A user's own copy of a data set."""
    return Path(shutil.copytree(phantom_root, tmp_path / "data"))


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_data_is_refused_before_ray_starts(
    fault: str, user_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_it, message = FAULTS[fault]
    break_it(user_root)
    monkeypatch.setattr("chexseg_ray.sweep.run.RaySession.start", lambda _: no_ray())
    with pytest.raises(InputError, match=message) as caught:
        run_study(tiny(tmp_path / "store", f"data.root={user_root}"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep.weak_n=[5000]", r"sweep.weak_n=5000 exceeds the \d+ images of the split 'weak'"),
        ("sweep.num_expert=[500]", r"sweep.num_expert=500 exceeds the \d+ images of the split 'expert_train'"),
        ("data.weak_csv=CheXpert-v1.0", "data.weak_csv=CheXpert-v1.0: is not a file"),
        ("data.weak_csv=CheXpert-v1.0/train.csv/x", "is not a file"),
        ("data.num_validation=500", "cannot give 500 for validation"),
    ],
)
def test_a_config_that_the_data_cannot_serve_is_refused_before_ray_starts(
    override: str, message: str, phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chexseg_ray.sweep.run.RaySession.start", lambda _: no_ray())
    with pytest.raises(InputError, match=message):
        run_study(tiny(tmp_path / "store", f"data.root={phantom_root}", override))


def test_a_patient_in_two_files_is_found_when_each_manifest_is_known_already(
    user_root: Path, phantom_root: Path, tmp_path: Path, private_ray: Callable[[], None]
) -> None:
    share_a_patient(user_root)
    for split in ("weak", "expert_train", "validation", "test"):
        config = tiny(tmp_path / "store", f"data.root={user_root}")
        study, source = load_study(config)
        store = Store.open(config.store.root)
        step = next(s for s in study.steps() if s.name == "manifest" and s.config["split"] == split)
        build(step, store, make_execution(config, source, no_ray))
    with pytest.raises(InputError, match="share 1 patients"):
        run_study(tiny(tmp_path / "store", f"data.root={user_root}"))


def test_an_annotated_lateral_is_left_out_by_the_view_not_called_unknown(user_root: Path, tmp_path: Path) -> None:
    lines = (user_root / ROOT / "valid.csv").read_text().splitlines()
    annotated = json.loads((user_root / "CheXlocalize" / "gt_segmentations_val.json").read_text())
    index = next(i for i, line in enumerate(lines) if any(a.split("_")[0] in line for a in annotated))
    lines[index] = lines[index].replace(",Frontal,", ",Lateral,")
    (user_root / ROOT / "valid.csv").write_text("\n".join(lines) + "\n")
    rows = {}
    for views in ("[frontal]", "[frontal, lateral]"):
        config = tiny(tmp_path / "store", f"data.root={user_root}", f"data.views={views}")
        study, source = load_study(config)
        store = Store.open(config.store.root)
        steps = [
            s for s in study.steps() if s.name == "manifest" and s.config["split"] in ("expert_train", "validation")
        ]
        rows[views] = sum(build(s, store, make_execution(config, source, no_ray)).rows for s in steps)
    assert rows["[frontal, lateral]"] == len(annotated)
    assert rows["[frontal]"] == len(annotated) - 1


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_classifier_whose_loss_is_nan_ends_with_one_line(
    workers: int, store_copy: Path, private_ray: Callable[[], None]
) -> None:
    resources = f"compute.classifier={{num_workers: {workers}, num_cpus: 1, num_gpus: 0, threads: 1}}"
    config = tiny(store_copy, "encoder_classifier.learning_rate=1e38", resources)
    study, source = load_study(config)
    store = Store.open(str(store_copy))
    step = next(s for s in study.steps() if s.name == "classifier" and s.config["architecture"] == "resnet18")
    with pytest.raises(InputError, match="lower its learning_rate"):
        build(step, store, make_execution(config, source, private_ray))


RHUBARB = [
    "data.pathologies=[Edema, Rhubarb]",
    "classifier.selection_pathologies=[Edema]",
    "encoder_classifier.selection_pathologies=[Edema]",
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep.p=[1.2]"], "sweep.p.0"),
        (["data.root=/nowhere/at/all"], "data.root=/nowhere/at/all: is not a folder"),
        (RHUBARB, "Rhubarb"),
        (["--paln"], "unrecognized arguments: --paln; see --help"),
        (["segmentation.lr=1"], "no field 'lr'"),
    ],
)
def test_the_command_line_ends_with_2_and_one_line(
    arguments: list[str], message: str, job: Job, phantom_root: Path, tmp_path: Path
) -> None:
    root = [] if any(a.startswith("data.root") for a in arguments) else [f"data.root={phantom_root}"]
    done = job("sweep.py", str(TINY), f"store.root={tmp_path / 's'}", *root, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in the_error(done.stderr)


def images_step(config: object, split: str):  # type: ignore[no-untyped-def]
    study, source = load_study(config)  # type: ignore[arg-type]
    return next(s for s in study.steps() if s.name == "images" and s.config["split"] == split), source


def test_unusable_weak_images_are_rejects_up_to_the_limit(
    user_root: Path, tmp_path: Path, private_ray: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: dict[tuple[str, str], float] = {}

    def count(name: str, value: float, **tags: str) -> None:
        counted[name, tags["stage"]] = counted.get((name, tags["stage"]), 0) + value

    monkeypatch.setattr("chexseg_ray.engine.prometheus.record", count)
    files = sorted((user_root / ROOT / "train").rglob("*.jpg"))
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:200])
    files[2].unlink()
    files[3].write_bytes(b"GIF89a")
    config = tiny(tmp_path / "store", f"data.root={user_root}", "data.max_reject_fraction=0.5")
    store = Store.open(config.store.root)
    step, source = images_step(config, "weak")
    record = build(step, store, make_execution(config, source, private_ray))
    assert (record.rows, record.rejects) == (len(files) - 4, 4)
    assert (counted["images", "images"], counted["rejects", "images"]) == (len(files) - 4, 4), "what Prometheus is told"
    reasons = [r["reason"] for r in store.read_table(record, "rejects.parquet").to_pylist()]
    assert reasons == ["undecodable", "undecodable", "missing", "format"]
    strict = tiny(tmp_path / "other", f"data.root={user_root}")
    other = Store.open(strict.store.root)
    with pytest.raises(InputError, match=r"4 of \d+ images cannot be used .*undecodable.*data.max_reject_fraction"):
        build(step, other, make_execution(strict, source, private_ray))
    assert other.find(step) is None


def test_an_unusable_expert_image_stops(user_root: Path, tmp_path: Path, private_ray: Callable[[], None]) -> None:
    config = tiny(tmp_path / "store", f"data.root={user_root}")
    store = Store.open(config.store.root)
    step, source = images_step(config, "validation")
    execution = make_execution(config, source, private_ray)
    manifest = build(step.inputs["manifest"], store, execution)
    row = store.read_table(manifest, "manifest.parquet").to_pylist()[0]
    file = user_root / ROOT / row["path"]
    file.write_bytes(b"")
    with pytest.raises(InputError, match=r"split 'validation' cannot be used .*allow_expert_rejects"):
        build(step, store, execution)
    assert store.find(step) is None


def test_a_point_whose_loss_is_nan_fails_alone_with_exit_code_3(store_copy: Path, job: Job) -> None:
    """Its successor at a sane rate runs on the same store."""
    done = job("sweep.py", str(TINY), f"store.root={store_copy}", "segmentation.learning_rate=1e38")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "failed: gradcam p=0.5" in done.stdout
    failures = [json.loads(p.read_text()) for p in store_copy.glob("evaluation/*/failed.json")]
    assert len(failures) == 2
    assert all("loss is nan, images patient" in f["error"] for f in failures)
    page = (store_copy / "report" / "tiny" / "index.html").read_text()
    assert "0 of 2 points" in page
    assert "loss is nan" in page


def test_storage_that_fails_inside_a_trial_ends_with_75_and_one_line(store_copy: Path, job: Job) -> None:
    """A file lies where the folder of an evaluation must be made, so that even root cannot write there."""
    evaluations = sorted((store_copy / "evaluation").iterdir())
    for folder in evaluations:
        shutil.rmtree(folder)
        folder.write_text("in the way")
    done = job("sweep.py", str(TINY), f"store.root={store_copy}")
    assert done.returncode == 75, done.stdout + done.stderr
    assert re.match(
        r"error: gradcam p=0.5 .*: cannot be written .*: check the store, its space", the_error(done.stderr)
    )
    assert "its process ended" not in done.stdout
    assert [path.read_text() for path in evaluations] == ["in the way"] * len(evaluations)
    assert not list(store_copy.rglob("*.tmp"))


def test_a_weak_csv_without_any_positive_label_is_refused_under_the_label_gate(store_copy: Path) -> None:
    from chexseg_ray.engine.execution import Task
    from chexseg_ray.stages.pseudo_masks import make

    config = tiny(store_copy)
    store = Store.open(str(store_copy))
    study, source = load_study(config)
    step = next(s for s in study.steps() if s.name == "pseudo_masks")
    inputs = {role: store.find(child) for role, child in step.inputs.items()}
    manifest = inputs["manifest"]
    assert manifest is not None
    table = store.read_table(manifest, "manifest.parquet").to_pylist()
    import pyarrow as pa

    schema = store.read_table(manifest, "manifest.parquet").schema
    attempt = store.new_attempt(step.inputs["manifest"])
    blank = pa.Table.from_pylist([row | {"labels": [None] * 10} for row in table], schema=schema)
    from dataclasses import replace

    inputs["manifest"] = replace(
        manifest, attempt=attempt.name, files=(attempt.write_table("manifest.parquet", blank),)
    )
    with pytest.raises(InputError, match=r"pseudo_masks.gate=probability"):
        make(Task(step, inputs, store.new_attempt(step), make_execution(config, source, no_ray)))  # type: ignore[arg-type]
