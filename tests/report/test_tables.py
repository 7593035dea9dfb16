"""The paper's tables, and what tells settings apart in them."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from report.fakes import fill, load
from report.reports import config_of, html, rows, table
from scipy import stats

from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.report.page import write_report
from chexseg_ray.report.paper_tables import init_name
from chexseg_ray.store.store import Store


def test_table_1_has_the_papers_layout(whole: tuple[Path, StudyConfig, Path]) -> None:
    found = table(whole[2] / "table1.csv")
    assert found[0][:6] == ["Task", "Method", "p = 0", "p = 0.5", "p = 0.9", "p = 1"]
    assert [row[:2] for row in found[1:5]] == [
        ["Mean IoU", "CAM"],
        ["Mean IoU", "IRNet"],
        ["Airspace Opacity", "CAM"],
        ["Airspace Opacity", "IRNet"],
    ]
    assert len(found) == 1 + 2 * 11
    assert (whole[2] / "table1_2.csv").is_file(), "one table an init that was mixed"
    mean = next(
        r
        for r in rows(whole[2])
        if (r["method"], r["init"], r["p"], r["trial"], r["pathology"]) == ("irnet", "random", "0.9", "all", "mean")
    )
    assert found[2][4] == f"{float(mean['iou']):.3f}"
    assert found[1][5] == found[2][5], "p = 1 is one training for both methods"
    weak = table(whole[2] / "table2.csv")
    assert weak[0][:5] == ["Encoder", "Train set size", "Experts", "CAM", "IRNet"]
    key = ("gradcam", "random", "0.0", "mean", "pooled")
    ious = [
        float(r["iou"])
        for r in rows(whole[2])
        if r["trial"] != "all" and (r["method"], r["init"], r["p"], r["pathology"], r["aggregation"]) == key
    ]
    assert weak[1][3] == f"{np.mean(ious):.3f} ± {stats.t.ppf(0.975, 2) * stats.sem(ious):.5f}"


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    settings = [
        SimpleNamespace(setting=SimpleNamespace(init=init))
        for init in ("/runs/a/w.pth", "/runs/b/w.pth", "/other/x.pth", "moco")
    ]
    names = [init_name(result.setting.init, settings) for result in settings]  # type: ignore[arg-type]
    assert names == ["a/w.pth", "b/w.pth", "x.pth", "MoCo-CXR"]


@pytest.mark.usefixtures("undrawn")
def test_networks_are_told_apart_everywhere(tmp_path: Path) -> None:
    config = config_of(tmp_path, "segmentation.encoder=[resnet18, resnet34]", "sweep.init=[random, chexpert]")
    write_report(config, fill(tmp_path, config), Store.open(str(tmp_path)))
    folder = tmp_path / "report" / "tiny"
    labels = [c["contrast"] for c in load(folder / "contrasts.json")]
    assert len(set(labels)) == len(labels) == 20
    titles = re.findall(r"<h2[^>]*>(Table 1[^<]*)</h2>", html(tmp_path))
    assert len(set(titles)) == len(titles) == 4
    for name in ("figure2_iou_over_p", "figure3_initialisations"):
        data = [(r["panel"], r["line"], r["x"]) for r in load(folder / f"{name}.json")]
        assert len(set(data)) == len(data), name
    found = table(folder / "table2.csv")
    assert [row[0] for row in found[1:]] == [
        f"{e}-{i}" for e in ("resnet18", "resnet34") for i in ("Random", "CheXpert")
    ], "in the paper's order"
