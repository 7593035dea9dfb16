"""A threshold of 0 makes a mask of the whole image: tables and page mark it, and name pathology and trial."""

from pathlib import Path

import pytest
from report.fakes import fill
from report.reports import config_of, html, rows, table

from chexseg_ray.report.page import write_report
from chexseg_ray.report.text import DAGGER
from chexseg_ray.store.store import Store


def made(folder: Path, zero: tuple[str, int]) -> Path:
    config = config_of(folder)
    write_report(config, fill(folder, config, zero=zero), Store.open(str(folder)))
    return folder / "report" / "tiny"


@pytest.mark.usefixtures("undrawn")
def test_a_threshold_of_0_is_marked_in_tables_and_named_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = made(tmp_path / "zero", ("Edema", 1))
    capsys.readouterr()
    plain = made(tmp_path / "plain", ("Edema", -1))
    assert DAGGER not in capsys.readouterr().out
    page = html(tmp_path / "zero")
    assert "gradcam p=0.5 init=chexpert weak_n=8: Edema (trial 1)" in page
    assert "Set segmentation.threshold_grid=fine" in page
    marked = {row[0] for row in table(found / "table1.csv") if any(DAGGER in cell for cell in row)}
    assert marked == {"Edema", "Mean IoU"}
    assert all(DAGGER in row[3] for row in table(found / "table2.csv")[1:])
    for name in ("table.md", "table.txt"):
        text = (found / name).read_text()
        assert f"{DAGGER} The threshold of a trial is 0" in text
        assert "Edema (trial 1)" in text
    for name in ("index.html", "table.md", "table.txt", "table1.csv", "table1.md", "table2.md"):
        assert DAGGER not in (plain / name).read_text(), name
    for name in ("results.csv", "contrasts.csv", "contrasts.json", "figure2_iou_over_p.json"):
        assert (found / name).read_bytes() == (plain / name).read_bytes(), "numbers stay as they are"
    assert rows(found)
