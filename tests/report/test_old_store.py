"""A store that an earlier version made is used as it is."""

import csv
import io
import tarfile
from pathlib import Path

import pytest

from chexseg_ray.config.parse import load_config
from chexseg_ray.errors import InputError
from chexseg_ray.plan.plan import known_sizes, plan
from chexseg_ray.report.explain import explanation, find_records
from chexseg_ray.report.page import write_report
from chexseg_ray.store.store import Store
from chexseg_ray.study.sources import load_study

FROZEN = Path(__file__).resolve().parents[1] / "frozen"
OVERRIDES = [
    "sweep.method=[gradcam, irnet]",
    "sweep.init=[random, moco, chexpert]",
    "sweep.p=[0.5, 1.0]",
    "sweep.trials=1",
]


@pytest.fixture(scope="module")
def old_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(FROZEN / "store.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def numbers(results: Path) -> dict[tuple[str, ...], tuple[str, ...]]:
    """iou, low, high and n of every row by its keys; keys that were blank then are words now."""
    with results.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    first, values = list(rows[0]).index("iou"), ("iou", "low", "high", "n")
    keys = [*list(rows[0])[:first], "interval"]
    words = {"method": "expert", "num_expert": "all"}
    found = {tuple(row[key] or words.get(key, "") for key in keys): tuple(row[name] for name in values) for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.usefixtures("undrawn")
def test_a_store_of_commit_01ca184_has_every_step_and_gives_the_same_results(old_store: Path) -> None:
    before = numbers(old_store / "report" / "tiny" / "results.csv")
    config = load_config(FROZEN / "tiny.yaml", [f"store.root={old_store}", *OVERRIDES])
    study, _ = load_study(config)
    store = Store.open(str(old_store))
    planned = plan(study, store, config, known_sizes(study, store, config))
    assert len(planned) == 36
    assert all(item.built for item in planned)
    write_report(config, study, store)
    assert numbers(old_store / "report" / "tiny" / "results.csv") == before


def test_a_row_of_its_results_is_explained_down_to_the_phantom(old_store: Path) -> None:
    text = (old_store / "report" / "tiny" / "results.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    line, row = next((i, row) for i, row in enumerate(rows, start=2) if row["method"] == "irnet" and row["record"])
    asked = find_records(f"{old_store}/report/tiny/results.csv:{line}", None)
    lines = list(explanation(asked))
    assert lines[0].startswith(
        f"{row['aggregation']} IoU of {row['pathology']}: {row['iou']} (method irnet, init random"
    )
    assert lines[1].startswith(f"{row['record']}  version ")
    text = "\n".join(lines)
    for kind in ("segmentation", "pseudo_masks", "propagation", "irnet", "cams", "classifier", "images", "manifest"):
        assert f": {kind}/" in text, kind
    assert text.count(": phantom/") - text.count("(see above)") < text.count(": phantom/"), "a record is shown once"
    assert "p 0.5" in text
    assert "(its record is not in the store)" not in text


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (b"\xff\xfe\x00", 2, "cannot be read"),
        (b"a,record\n1,x\n", 2, "is not a report's results.csv"),
        (b"", 2, "is not a report's results.csv"),
        (
            b"method,trial,pathology,aggregation,iou,record\nirnet,0,mean,pooled,0.1,\n",
            9,
            "no row of results in line 9",
        ),
        (b"method,trial,pathology,aggregation,iou,record\nirnet,all,mean,pooled,0.1,\n", 2, "no trial of this setting"),
    ],
)
def test_a_row_that_cannot_be_explained_is_one_line(content: bytes, line: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        find_records(f"{tmp_path}/x.csv:{line}", None)
    with pytest.raises(InputError, match="cannot be read"):
        find_records("/nosuch.csv:2", None)
