"""A report's folder may hold files of the user, and ids and names may be hostile (faults.md 33)."""

import csv
import re
from html import escape
from pathlib import Path

import pyarrow as pa
import pytest
from report.fakes import commit, fill
from report.reports import config_of, html

from chexseg_ray.errors import InputError
from chexseg_ray.report.page import write_report
from chexseg_ray.store.store import Store

pytestmark = pytest.mark.usefixtures("undrawn")
SCRIPT = "<script>alert(1)</script>"
HOSTILE = f"{SCRIPT}\n\x1b[2J\"'&=cmd"


def test_a_report_deletes_only_files_that_an_earlier_one_made(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    study, store, folder = fill(tmp_path, config), Store.open(str(tmp_path)), tmp_path / "report" / "tiny"
    write_report(config, study, store)
    (folder / "notes.txt").write_text("mine")
    (folder / "drafts").mkdir()
    (folder / "drafts" / "a.txt").write_text("mine too")
    old = "table_of_an_older_version.md"
    (folder / old).write_text("old")
    listed = (folder / "files.txt").read_text()
    (folder / "files.txt").write_text(f"{listed}{old}\ndrafts\n../../keep.txt\n")
    (tmp_path / "keep.txt").write_text("outside")
    write_report(config, study, store)
    assert not (folder / old).exists()
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "drafts" / "a.txt").read_text() == "mine too"
    assert (tmp_path / "keep.txt").read_text() == "outside"
    assert (folder / "files.txt").read_text() == listed


def test_hostile_ids_paths_errors_and_titles_are_text_in_the_page(tmp_path: Path) -> None:
    config = config_of(tmp_path, f"report.title='{SCRIPT}'")
    config = config.model_copy(update={"data": config.data.model_copy(update={"licence": HOSTILE, "root": "/x"})})
    study, store = fill(tmp_path, config, skip=1), Store.open(str(tmp_path))
    step = next(s for s in study.steps() if s.name == "images" and s.config["split"] == "weak")
    row = {"cxr_id": HOSTILE, "path": f"train/{HOSTILE}", "stage": "images", "reason": "undecodable"}
    notes = {f"warning {SCRIPT}": {"images": 1, "first": [HOSTILE]}}
    commit(store, step, {"rejects.parquet": pa.Table.from_pylist([row])}, {"notes": notes}, rejects=1)
    positive = dict.fromkeys(config.data.pathologies, 3)
    commit(store, step.inputs["manifest"], {}, {"positive_masks": None, "positive_labels": positive, "patients": 4})
    store.put_failure(study.points[0][1], InputError(f"loss is nan, images {HOSTILE}"))
    write_report(config, study, store)
    page = html(tmp_path)
    assert "<script" not in page.lower()
    assert page.count(escape(SCRIPT)) >= 6, "title, licence, id, path, note and failure, as text"
    assert not re.search(r"<[^>]*alert\(1\)", page), "nor inside a tag"


def test_hostile_names_are_one_cell_each_in_every_csv_file(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", SCRIPT, "two\nlines", "@SUM(1)"]
    config = config_of(
        tmp_path,
        *(f"{section}.selection_pathologies=[Edema]" for section in ("classifier", "encoder_classifier")),
        "data.pathologies=[Edema]",
    )
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"pathologies": ("Edema", *names)})}  # as a column may be called
    )
    write_report(config, fill(tmp_path, config), Store.open(str(tmp_path)))
    for path in (tmp_path / "report" / "tiny").glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))
        assert {len(row) for row in rows} == {len(rows[0])}, path
        cells = [cell for row in rows for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "@"))], path
    assert SCRIPT not in html(tmp_path)
