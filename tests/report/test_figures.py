"""Figures as pictures and as data."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report.fakes import commit, fill, load
from studies import tiny

from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.report.figures import Figure, draw
from chexseg_ray.report.page import write_report
from chexseg_ray.store.store import Store


def test_each_figure_is_png_and_svg_with_its_data(whole: tuple[Path, StudyConfig, Path]) -> None:
    folder = whole[2]
    names = {path.stem for path in folder.glob("*.svg")}
    assert names == {"figure2_iou_over_p", "figure3_initialisations", "figure5_radiologists"}
    for name in names:
        with Image.open(folder / f"{name}.png") as image:
            assert min(image.size) > 400
        data = load(folder / f"{name}.json")
        assert {"panel", "line", "x", "iou", "low", "high", "few_patients"} == set(data[0])
    panels = [row["panel"] for row in load(folder / "figure2_iou_over_p.json")]
    assert list(dict.fromkeys(panels)) == ["(a) mean IoU", "(b) Pleural Effusion", "(c) Consolidation", "(d) Edema"]
    bars = {(r["panel"], r["x"]) for r in load(folder / "figure3_initialisations.json")}
    assert ("(a) fully supervised", "Random") in bars
    assert ("(b) weakly supervised, 8 weak images", "CheXpert") in bars


def test_every_line_of_every_panel_is_in_the_legend_in_its_own_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("chexseg_ray.report.figures.figure_bytes", lambda figure: drawn.append(figure) or {})
    bar = [("Random", 0.4, 0.3, 0.5, False)]
    panels = {"(a)": {"expert masks": bar}, "(b)": {"CAM": bar, "IRNet": bar}}
    draw(Figure("f", "F", "", panels, "over patients", bars=True), 0.95)
    legend = drawn[0].legends[0]
    assert legend.get_title().get_text() == "95 % intervals over patients"
    assert [text.get_text() for text in legend.get_texts()] == ["expert masks", "CAM", "IRNet"]
    assert len({handle.get_facecolor() for handle in legend.get_patches()}) == 3


def test_what_has_no_interval_is_drawn_without_one_and_few_patients_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("chexseg_ray.report.figures.figure_bytes", lambda figure: drawn.append(figure) or {})
    line = [(0.0, 0.2, math.nan, math.nan, True), (1.0, 0.4, 0.3, 0.5, False)]
    draw(Figure("f", "F", "p", {"(a)": {"CAM": line}}, "over trials and patients"), 0.95)
    axes, legend = drawn[0].axes[0], drawn[0].legends[0]
    ends = axes.containers[0].lines[2][0].get_segments()
    assert not len(ends[0]), "no bar"
    assert np.isnan(axes.containers[0].lines[1][0].get_ydata()[0]), "and no cap"
    np.testing.assert_allclose(np.array(ends[1])[:, 1], [0.3, 0.5])
    assert [[x, y] for x, y in axes.lines[-1].get_xydata()] == [[0.0, 0.2]], "a hollow marker"
    assert "hollow: fewer than 20 positive patients" in legend.get_title().get_text()


@pytest.mark.usefixtures("undrawn")
def test_the_budgets_figure_places_all_expert_masks_at_their_number(tmp_path: Path) -> None:
    config = tiny(tmp_path, "sweep.num_expert=[5, null]", "sweep.p=[1.0]", "report.bootstrap_replicates=100")
    study = fill(tmp_path, config)
    step = next(step for step in study.steps() if step.name == "images" and step.config["split"] == "expert_train")
    commit(Store.open(str(tmp_path)), step, {}, {}, rows=17)
    write_report(config, study, Store.open(str(tmp_path)))
    assert {row["x"] for row in load(tmp_path / "report" / "tiny" / "miou_over_num_expert.json")} == {5, 17}
