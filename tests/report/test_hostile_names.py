"""Names of pathologies, inits and reports in any characters: figures, tables and page show them as written."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from report.fakes import fill
from report.reports import rows
from studies import tiny

from chexseg_ray.progress import csv_cell
from chexseg_ray.report.examples import Example, draw_examples
from chexseg_ray.report.figures import Figure, draw
from chexseg_ray.report.page import write_report
from chexseg_ray.store.store import Store

NAMES = ["Atelectasis", "=Edema$x_", r"$\frac{1$", "+$", "-1+cmd|x", "@胸水 ع 🫁", "x" * 400, "$a$ and $b^"]


def test_a_report_with_names_in_any_characters_is_made_without_a_warning(tmp_path: Path) -> None:
    """pytest makes every warning an error."""
    config = tiny(
        tmp_path,
        f"data.pathologies={json.dumps(NAMES, ensure_ascii=False)}",
        "classifier.selection_pathologies=[Atelectasis]",
        "encoder_classifier.selection_pathologies=[Atelectasis]",
        "sweep.p=[0.0, 0.5]",
        "sweep.init=['=cmd$_/$x^', '@$胸']",
        r"report.title='$\frac{1$'",
        "report.contrasts=[{p: [0.0, 0.5]}]",
        "report.bootstrap_replicates=100",
    )
    write_report(config, fill(tmp_path, config), Store.open(str(tmp_path)))
    folder = tmp_path / "report" / config.report.name
    assert len(list(folder.glob("*.png"))) == len(list(folder.glob("*.svg"))) == 3
    assert "$\\frac{1$" in (folder / "index.html").read_text(encoding="utf-8")
    assert {row["pathology"] for row in rows(folder)} == {csv_cell(name) for name in NAMES} | {"mean"}
    assert {row["init"] for row in rows(folder)} == {"'=cmd$_/$x^", "'@$胸"}
    numbers = 0
    for path in folder.glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as stream:
            cells = [cell for row in csv.reader(stream) for cell in row]
        formulas = [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
        assert all(cell.replace(" to ", "").replace("%", "").strip("+-.0123456789") == "" for cell in formulas), path
        numbers += len(formulas)
    assert numbers, "negative numbers stay numbers"


def test_a_dollar_is_drawn_as_a_dollar_in_every_figure() -> None:
    line = [(0.0, 0.2, 0.1, 0.3, True), (1.0, 0.4, 0.3, 0.5, False)]
    bars = [("$x_", 0.4, 0.3, 0.5, False)]
    for figure in (
        Figure("f", "F", "$p^", {r"$\frac": {"$_": line}}, "over $"),
        Figure("f", "F", "", {r"$\frac": {"$_": bars}}, "over $", bars=True),
    ):
        assert draw(figure, 0.95)["png"].startswith(b"\x89PNG")
    masks = dict.fromkeys(("truth", "$best_"), np.ones((8, 8), dtype=bool))
    example = Example(r"$\frac", "$id_", np.zeros((8, 8), dtype=np.uint8), masks)
    assert draw_examples([example], [r"$\frac"], {"$best_": r"$\frac $_"})["png"].startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["-0.5", "+.5", "-1e-05", "-28%", "-0.1 to +0.2", "12", "", "a=1", "–", "−0.5"])
def test_numbers_and_plain_texts_are_cells_as_they_are(text: str) -> None:
    assert csv_cell(text) == text


@pytest.mark.parametrize(
    "text",
    ["=1", "=1+1", "-1+1", "+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", "\n=1", "-", "--1", "-0.1 to =1", "-a"],
)
def test_what_a_spreadsheet_reads_as_a_formula_is_guarded(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-0.5, -3, None, True])
def test_other_values_are_cells_as_they_are(value: object) -> None:
    assert csv_cell(value) is value


def test_an_overlays_legend_takes_any_name() -> None:
    from chexseg_ray.data.overlays import overlay_png

    grey, masks = np.zeros((40, 40), dtype=np.uint8), np.ones((1, 40, 40), dtype=bool)
    for name in ("two\nlines", "$x_", "胸水 \x00", "\ud800"):
        data = overlay_png(grey, masks, [name], "notice")
        assert data.startswith(b"\x89PNG")
