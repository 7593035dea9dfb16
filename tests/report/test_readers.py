"""Radiologists beside models, and what is chosen."""

import re
from pathlib import Path

import pytest
from report.fakes import counts_table, fill, graph
from report.reports import config_of, html, table

from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.report.page import read_results, write_report
from chexseg_ray.store.store import Store
from chexseg_ray.study.choice import choose


def test_radiologists_are_measured_as_models_and_the_gap_is_the_papers(whole: tuple[Path, StudyConfig, Path]) -> None:
    store, config, folder = whole
    study = graph(config)
    opened = Store.open(str(store))
    results = read_results(config, study, opened, opened.find_all(study.steps()))
    names = [rival.name for rival in results.comparison.rivals]
    assert names == ["radiologists", "semi-supervised", "weakly supervised", "fully supervised"]
    reader, semi, weak = (rival.mean.mean for rival in results.comparison.rivals[:3])
    closed = results.comparison.gap_closed
    assert closed.mean == pytest.approx((semi - weak) / (reader - weak))
    assert 0 < closed.low < closed.mean < closed.high
    counts = counts_table(list(config.data.pathologies), 0.9, 999, "Lung Lesion").to_pandas()
    pixels = counts[counts.resolution == "model"].groupby("pathology")[["intersection", "predicted", "truth"]].sum()
    iou = pixels.intersection / (pixels.predicted + pixels.truth - pixels.intersection)
    assert reader == pytest.approx(iou[pixels.truth > 0].mean())
    cells = table(folder / "radiologists.csv")
    assert cells[1][:2] == ["Mean IoU", f"{reader:.3f}"]
    assert cells[1][5] == f"{semi / reader - 1:+.0%}"


def test_what_is_chosen_does_not_change_with_the_test_set(tmp_path: Path) -> None:
    chosen = []
    for seed in (0, 1):
        config = config_of(tmp_path / str(seed))
        study = fill(tmp_path / str(seed), config, test_seed=seed)
        store = Store.open(str(tmp_path / str(seed)))
        records = store.find_all(study.steps())
        chosen.append({kind: (choice.point, choice.score) for kind, choice in choose(study, records).items()})
        iou = [r.sums["pooled"].estimate()[0] for r in read_results(config, study, store, records).points]
        chosen[-1]["iou"] = iou[0]  # type: ignore[assignment]
    assert chosen[0].pop("iou") != chosen[1].pop("iou"), "the test set did change"
    assert chosen[0] == chosen[1]
    assert list(chosen[0]) == ["semi-supervised", "fully supervised", "weakly supervised"]
    assert chosen[0]["semi-supervised"][0].method == "gradcam"
    assert chosen[0]["semi-supervised"][0].p == 0.9
    assert chosen[0]["semi-supervised"][0].trial == 2, "the trial with the highest validation score"


@pytest.mark.usefixtures("undrawn")
def test_the_share_of_the_gap_has_no_interval_where_there_may_be_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    monkeypatch.setattr("report.fakes.quality_of", lambda point: 0.9 + 0.001 * (0 < point.p < 1))
    write_report(config, fill(tmp_path, config), Store.open(str(tmp_path)))
    assert re.search(r"Semi-supervision closes -?\d+ % \(no interval, as there may be no gap", html(tmp_path))
