"""What happens to a user's files before Ray starts: counted for the plan, checked, each parsed once."""

import json
import pickle
from collections import Counter
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from studies import tiny

from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.data.masks import encode_rle
from chexseg_ray.engine import source_tables
from chexseg_ray.engine.execution import make_execution
from chexseg_ray.engine.source_tables import SourceTables
from chexseg_ray.store.store import Store
from chexseg_ray.study.sources import load_study
from chexseg_ray.sweep.checks import check_inputs, prepare, survey
from chexseg_ray.sweep.run import run_study

PATHOLOGIES = ["Edema", "Consolidation"]


def write_split(root: Path, folder: str, count: int, masks: bool) -> None:
    """A CSV and its images of two patients each, with masks of one pathology."""
    lines, entries = ["Path,Frontal/Lateral,Edema,Consolidation"], {}
    for i in range(count):
        path = f"{folder}/patient{folder}{i // 2}/study1/view{i % 2}_frontal.png"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 30), 90 + i, dtype=np.uint8)).save(root / path)
        lines.append(f"{path},Frontal,{i % 3 % 2},1")
        mask = np.zeros((40, 30), dtype=bool)
        mask[5 : 10 + i, 5:20] = True
        rle = {"size": [40, 30], "counts": encode_rle(mask)}
        entries[path.split("/", 1)[1].removesuffix(".png").replace("/", "_")] = dict.fromkeys(PATHOLOGIES, rle)
    (root / f"{folder}.csv").write_text("\n".join(lines) + "\n")
    if masks:
        (root / f"{folder}.json").write_text(json.dumps(entries))


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    root = tmp_path / "root"
    for folder, count in (("train", 30), ("valid", 14), ("test", 6)):
        write_split(root, folder, count, folder != "train")
    names = f"[{', '.join(PATHOLOGIES)}]"
    return tiny(
        tmp_path / "store",
        f"data.root={root}",
        f"data.pathologies={names}",
        f"classifier.selection_pathologies={names}",
        f"encoder_classifier.selection_pathologies={names}",
        "data.weak_csv=train.csv",
        "data.expert_csv=valid.csv",
        "data.expert_masks=valid.json",
        "data.test_csv=test.csv",
        "data.test_masks=test.json",
        "data.benchmark_masks=test.json",
        "data.num_validation=4",
        "data.phantom=null",
    )


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was parsed."""
    counts: Counter[str] = Counter()

    def counting(parse: Any) -> Any:
        @wraps(parse)
        def counted(*arguments: Any) -> Any:
            counts[arguments[1]] += 1
            return parse(*arguments)

        return counted

    for name in ("read_csv", "read_mask_json"):
        monkeypatch.setattr(source_tables, name, counting(getattr(source_tables, name)))
    return counts


def no_ray() -> None:
    raise AssertionError("Ray is not to start")


def test_each_source_is_parsed_once_before_ray_starts(config: StudyConfig, parsed: Counter[str]) -> None:
    study, source = load_study(config)
    store = Store.open(config.store.root)
    execution = make_execution(config, source, no_ray)
    check_inputs(config, source, execution.tables)
    prepare(config, study, source, store, execution)
    assert parsed == dict.fromkeys(["train.csv", "valid.csv", "valid.json", "test.csv", "test.json"], 1)
    rows = {step.config["split"]: store.find(step) for step in study.upstream() if step.name == "manifest"}
    assert {split: record.rows for split, record in rows.items() if record} == {
        "weak": 30,
        "expert_train": 10,
        "validation": 4,
        "test": 6,
    }


def test_the_tables_do_not_travel_to_other_processes(config: StudyConfig) -> None:
    _, source = load_study(config)
    assert source is not None
    tables = SourceTables()
    first = tables.csv(source, "train.csv", PATHOLOGIES, {})
    assert tables.csv(source, "train.csv", PATHOLOGIES, {}) is first
    assert pickle.loads(pickle.dumps(tables)).csv(source, "train.csv", PATHOLOGIES, {}) is not first
    tables.clear()
    assert tables.csv(source, "train.csv", PATHOLOGIES, {}) is not first


def test_the_plan_counts_the_images_of_data_that_are_there(
    config: StudyConfig, parsed: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    study, source = load_study(config)
    assert source is not None
    counted, faults, about = survey(config, study, source, Store.open(config.store.root))
    assert counted == {"weak": 30, "expert_train": 10, "validation": 4, "test": 6}
    assert faults == []
    assert [line for line in about if "against" not in line] == about[::2], "two lines for each split with masks"
    assert set(parsed.values()) == {1}
    assert run_study(config, plan_only=True) == 0
    text = capsys.readouterr().out
    assert "is unknown for" not in text
    assert "note: " not in text
    assert not Path(config.store.root).exists(), "a plan writes nothing"


def test_the_plan_names_faults_of_the_data(config: StudyConfig, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(str(config.data.root)) / "train.csv"
    path.write_text(path.read_text().replace(",1\n", ",yes\n", 1))
    assert run_study(config, plan_only=True) == 0
    text = capsys.readouterr().out
    assert "note: train.csv row 2: Consolidation is 'yes': a label is 1, 0, -1 or blank" in text
    assert "note: the number of images is unknown for: weak; costs assume 100 each" in text


def test_a_study_that_asks_for_no_gpu_is_estimated_for_cpus_only(
    config: StudyConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chexseg_ray.sweep.run.gpus_here", lambda: 0)
    monkeypatch.setattr("chexseg_ray.sweep.run.cpus_here", lambda: 2)
    assert run_study(config, plan_only=True) == 0
    times = capsys.readouterr().out.partition("estimated time")[2]
    assert times.startswith(" on this machine (2 CPUs): ")
    assert "  8 CPUs: " in times
    assert "GPU" not in times


def test_an_estimated_number_of_images_is_no_reason_for_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_study(tiny(tmp_path / "store", "sweep.weak_n=[28]"), plan_only=True) == 0
    text = capsys.readouterr().out
    assert "images (estimated): weak 27," in text
    assert "note:" not in text


def test_the_plan_names_sets_that_are_larger_than_the_data(
    config: StudyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = config.sweep.model_copy(update={"weak_n": (31,)})
    assert run_study(config.model_copy(update={"sweep": sweep}), plan_only=True) == 0
    assert "note: sweep.weak_n=31 exceeds the 30 images of the split 'weak'" in capsys.readouterr().out
