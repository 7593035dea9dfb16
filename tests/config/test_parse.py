"""The config: complete files, refusals in one line, overrides."""

from pathlib import Path

import pytest

from chexseg_ray.config.fields import for_weak_n
from chexseg_ray.config.parse import load_config, parse_config
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = [
    REPOSITORY / "configs" / "demo.yaml",
    REPOSITORY / "tests" / "tiny.yaml",
    REPOSITORY / "configs" / "paper.yaml",
    REPOSITORY / "configs" / "evidence.yaml",
    REPOSITORY / "configs" / "real.yaml",
]
TEXT = CONFIGS[1].read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_a_shipped_config_loads(path: Path) -> None:
    assert isinstance(load_config(path), StudyConfig)


def test_the_names_that_scripts_rely_on_can_be_overridden() -> None:
    config = parse_config(
        TEXT,
        [
            "store.root=/s",
            "data.root=/d",
            "data.max_reject_fraction=0.5",
            "sweep.p=[0.2, 1]",
            "sweep.trials=5",
            "sweep.init=[random]",
            "sweep.method=[gradcam, irnet]",
            "sweep.weak_n=[4, 8]",
            "sweep.num_expert=[3, null]",
            "segmentation.learning_rate={4: 1e-3, 8: 1e-4}",
            "segmentation.num_updates={4: 10, 8: 20}",
        ],
    )
    assert config.sweep.p == (0.2, 1.0)
    assert config.sweep.num_expert == (3, None)
    assert for_weak_n(config.segmentation.learning_rate, 8) == 1e-4
    assert for_weak_n(config.segmentation.num_updates, 0) == 10, "p = 1 takes the smallest weak set's"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep.p=[1.2]", "sweep.p.0"),
        ("sweep.p=[]", "at least one value"),
        ("sweep.p=[0.5, 0.5]", "0.5 twice"),
        ("sweep.trials=0", "sweep.trials"),
        ("sweep.trials=true", "sweep.trials"),
        ("sweep.trials='2'", "sweep.trials"),
        ("segmentation.learning_rate=.nan", "learning_rate"),
        ("segmentation.num_updates={99: 3}", "has no value for weak_n 8"),
        ("sweep.trails=2", "did you mean 'trials'"),
        ("swep.trials=2", "did you mean 'sweep'"),
        ("sweep.trials", "section.field=value"),
        ("data.pathologies=[Edema, Edema]", "'Edema' twice"),
        ("data.pathologies=[Edema]", "selection_pathologies names 'Atelectasis'"),
        ("moco.queue_size=18", "queue_size=18 is not a multiple of batch_size=4"),
        ("irnet.encoder=moco", "irnet.encoder=moco: the weights are made by this study"),
        (
            "pretraining.normalisation={w.pth: chexpert}",
            "pretraining.normalisation names 'w.pth', which is neither an init",
        ),
        (
            "pretraining.imagenet_files={resnet_18: f}",
            "names 'resnet_18', which is not an encoder of this study (did you mean 'resnet18'?)",
        ),
        ("data.columns={Path: []}", "at least one value"),
        ("moco.init=chexpert", "moco.init=chexpert: the weights are made by this study"),
        ("sweep.trials.x=1", "sweep.trials is 2, not a section: write sweep.trials=..."),
        ("irnet.random_walk.radius=5", "irnet.random_walk is 'chexseg', not a section"),
        ("sweep.p=0.5", "sweep.p: is not a list: write [0.5]"),
        (
            "report.contrasts=[{p: [0.9, 2]}]",
            "report.contrasts.0.p.1: Input should be less than or equal to 1 (got 2)",
        ),
        ("compute.rates.images.wek=5", "compute.rates.images.wek: Input should be 'weak', 'expert_train'"),
        ("segmentation.learning_rate={100: x}", "segmentation.learning_rate.100: Input should be a valid number"),
        ("compute.cams=5", "compute.cams: is not a section: write {field: value} (got 5)"),
        ("moco.num_replicas=4", "cannot be split into num_replicas=4"),
        ("compute.moco.num_workers=2", "compute.moco.num_workers=2 must be 0, 1 or moco.num_replicas=1"),
        (
            "compute.segmentation.num_workers={8: 2}",
            "compute.segmentation.num_workers=2 must be 0, 1 or segmentation.num_replicas=1",
        ),
        ("compute.segmentation.num_gpus={99: 1}", "compute.segmentation.num_gpus has no value for weak_n 8"),
        ("sweep.also=[{q: [0]}]", "sweep.also.0.q: unknown key"),
        ("sweep.also=[{p: []}]", "at least one value"),
        ("segmentation.encoder=[resnet18, resnet18]", "'resnet18' twice"),
        ("segmentation.architecture=[]", "at least one value"),
        ("data.columns={Edemas: e}", "columns names 'Edemas'"),
        ("irnet.foreground=1.0", "irnet.foreground"),
        ("irnet.background=0.4", "must be below foreground"),
        ("irnet.rescale=[1.5, 0.5]", "smaller scale comes first"),
        ("irnet.instance_wise=true", "set irnet.displacement=true"),
        ("irnet.random_walk=chexsg", "random_walk: is not a preset: write chexseg, irn"),
        ("irnet.random_walk={radius: 3, beta: 5.0}", "irnet.random_walk.steps: missing"),
        (
            "compute.irnet={num_workers: 3, num_cpus: 1, num_gpus: 0, threads: 1}",
            "not a multiple of compute.irnet.num_workers=3",
        ),
        ("sweep.method=[irn]", "sweep.method"),
        ("data.weak_csv=null", "data.weak_csv is null"),
        ("data.test_masks=null", "go together"),
        ("data.num_test=5", "not both"),
        ("report.name=../x", "report.name"),
        ("report.title=2024-13-45", "write plain YAML"),
        ("sweep.p={[1]: 2}", "write plain YAML"),
        ("classifier.train_splits=[weak, expert_train]", "both name 'expert_train'"),
        ("classifier.architecture=resnet18", "cams.fine_grid"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(TEXT, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: !!python/object/apply:os.system ['true']",
            "tags such as tag:yaml.org,2002:python/object/apply:os.system are not read",
        ),
        (TEXT + "\nsweep: {}\n", "'sweep' is there twice"),
        (TEXT.replace("  trials: 2", "  trials: 2\n  trails: 3"), "did you mean 'trials'"),
        (TEXT.replace("  trials: 2\n", ""), "sweep.trials: missing"),
        ("- 1", "not a mapping"),
        ("a: [", "write plain YAML"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_p_0_without_expert_masks_names_the_three_fields() -> None:
    without = ["data.expert_csv=null", "data.expert_masks=null", "sweep.p=[0]"]
    with pytest.raises(InputError, match=r"pseudo_masks.thresholds.*segmentation.thresholds.*segmentation.checkpoint"):
        parse_config(TEXT, without)
    fixed = ["pseudo_masks.thresholds=otsu", "segmentation.thresholds=fixed", "segmentation.checkpoint=last"]
    assert parse_config(TEXT, [*without, *fixed]).data.expert_csv is None
    with pytest.raises(InputError, match="needs expert masks"):
        parse_config(TEXT, [*without[:2], *fixed, "sweep.p=[0, 0.5]"])


def test_p_1_without_weak_images_works() -> None:
    config = parse_config(TEXT, ["data.weak_csv=null", "sweep.p=[1]", "sweep.init=[random]"])
    assert config.data.weak_csv is None


def test_scientific_notation_is_a_number() -> None:
    assert parse_config(TEXT, ["classifier.learning_rate=1e-4"]).classifier.learning_rate == 1e-4


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_free_mapping_takes_new_keys_and_finds_those_that_are_numbers() -> None:
    config = parse_config(TEXT, ["compute.rates.images.weak=5", "data.columns.Path=file"])
    assert config.compute.rates.images == {"weak": 5}
    assert config.data.columns == {"Path": "file"}
    rates = [
        "segmentation.learning_rate={8: 1e-3, 16: 1e-3}",
        "segmentation.learning_rate.8=5e-4",
        "sweep.weak_n=[8, 16]",
    ]
    assert parse_config(TEXT, rates).segmentation.learning_rate == {8: 5e-4, 16: 1e-3}


def refusal(text: str = TEXT, *overrides: str) -> str:
    """The message with which a config is refused, which must be one short line."""
    with pytest.raises(InputError) as caught:
        parse_config(text, overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700, len(message)
    return message


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "a sequence in 2,000 sequences": ("[" * 2000, "nested too deeply"),
    "a mapping in 2,000 mappings": ("{a: " * 2000, "nested too deeply"),
    "a block in 200 blocks": ("- " * 200, "nested too deeply"),
    "an explicit tag": ("!!timestamp x", "tags such as tag:yaml.org,2002:timestamp are not read"),
    "an explicit tag of a sequence": ("!!set [x]", "tags such as tag:yaml.org,2002:set are not read"),
    "aliases of aliases": (LAUGHS, "too many values"),
    "an alias in its own value": ("&a [*a]", "an alias names no value that is complete"),
    "a number of 5,000 digits": ("9" * 5000, "Exceeds the limit"),
    "a key of 1,000 characters, twice": ("{" + f"{'x' * 1000}: 1, " * 2 + "}", "is there twice"),
}


@pytest.mark.parametrize(("value", "rule"), HOSTILE.values(), ids=HOSTILE)
def test_yaml_that_nests_multiplies_or_names_types_is_one_short_line(value: str, rule: str) -> None:
    assert rule in refusal(value)
    assert rule in refusal(TEXT, f"report.title={value}")


def test_an_anchor_and_its_alias_are_read() -> None:
    assert parse_config(TEXT, ["segmentation.atrous_rates=[&rate 7, *rate, 9]"]).segmentation.atrous_rates == (7, 7, 9)


@pytest.mark.parametrize(
    "override",
    [
        "sweep.trials=" + "x" * 20_000,
        "sweep.trials=[" + "x, " * 5_000 + "]",
        "sweep.trials=0x" + "f" * 10_000 + ".",
        "compute.cams=0x" + "f" * 10_000,
        "sweep.p=0x" + "f" * 10_000,
        "sweep.p=" + "x" * 20_000,
        "sweep." + "x" * 20_000 + "=1",
        "x" * 20_000 + ".y=1",
        "x." * 10_000 + "y=1",
        "data.columns." + "x." * 5000 + "y=1",
        "sweep={" + "x" * 20_000 + ": 1}",
        "irnet.random_walk=" + "x" * 20_000,
        "data.columns={" + "x" * 20_000 + ": y}",
        "pretraining.normalisation={" + "x" * 20_000 + ": chexpert}",
        "pretraining.imagenet_files={" + "x" * 20_000 + ": y}",
        "data.pathologies=[" + "x" * 20_000 + "]",
        "data.pathologies=[" + ", ".join(["x" * 10_000] * 2) + "]",
        "sweep.trials." + "x" * 20_000 + "=1",
        "\n\x1b[31m" * 10_000,
    ],
    ids=lambda override: override[:40].encode("unicode_escape").decode(),
)
def test_what_a_message_quotes_is_cut(override: str) -> None:
    refusal(TEXT, override)
