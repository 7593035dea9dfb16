"""IoU and its intervals, recomputed from the rows of results.csv and from the counts."""

import re
from pathlib import Path

import numpy as np
import pytest
from report.fakes import fill, graph, load
from report.reports import config_of, html, rows, table
from scipy import stats

from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.report.page import read_results, write_report
from chexseg_ray.store.store import Store


def test_intervals_over_trials_are_scipys_of_the_trials_rows(whole: tuple[Path, StudyConfig, Path]) -> None:
    found = rows(whole[2])
    key = ("method", "init", "p", "pathology", "aggregation")
    trials = [r for r in found if r["trial"] != "all"]
    checked = 0
    for row in found:
        if row["trial"] == "all" and row["interval"].startswith("trials,") and row["low"]:
            ious = [float(t["iou"]) for t in trials if all(t[k] == row[k] for k in key)]
            low, high = stats.t.interval(0.95, 2, np.mean(ious), stats.sem(ious))
            assert float(row["low"]) == pytest.approx(max(low, 0), abs=1e-12)
            assert float(row["high"]) == pytest.approx(min(high, 1), abs=1e-12)
            checked += 1
    assert checked > 300


def test_every_interval_holds_its_mean_and_both_sources_add_up(whole: tuple[Path, StudyConfig, Path]) -> None:
    store, config, folder = whole
    pooled = [
        r for r in rows(folder) if r["trial"] == "all" and r["pathology"] == "mean" and r["aggregation"] == "pooled"
    ]
    assert all(float(r["low"]) <= float(r["iou"]) <= float(r["high"]) for r in pooled)
    study, opened = graph(config), Store.open(str(store))
    results = read_results(config, study, opened, opened.find_all(study.steps()))
    assert results.test is not None
    for setting in results.settings:
        sums = [point.sums["pooled"] for point in setting.points]
        weights, shown = results.test.weights, sums[0].truth.sum(axis=0) > 0
        drawn = [(weights @ s.numerator[:, shown] / (weights @ s.denominator[:, shown])).mean(axis=1) for s in sums]
        values = [(s.numerator.sum(axis=0) / s.denominator.sum(axis=0))[shown].mean() for s in sums]
        parts = np.var(values, ddof=1) / 3, max(0.0, np.cov(drawn)[np.triu_indices(3, 1)].mean())
        assert setting.mean["pooled"].patients.n == 40
        half = stats.t.ppf(0.975, sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 39)) * sum(parts) ** 0.5
        given = parts[1] + (np.var(drawn, axis=1, ddof=1).mean() - parts[1]) / 3
        half = max(half, stats.t.ppf(0.975, 39) * given**0.5)  # no less than patients alone
        both = setting.mean["pooled"].both
        assert (both.low, both.high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), rel=1e-6)


def test_an_undefined_pathology_is_blank_with_a_reason_and_counted(whole: tuple[Path, StudyConfig, Path]) -> None:
    lesion = [
        r
        for r in rows(whole[2])
        if r["pathology"] == "Lung Lesion" and r["trial"] == "all" and r["aggregation"] == "pooled"
    ]
    assert {(r["iou"], r["low"], r["note"]) for r in lesion} == {("", "", "undefined")}
    means = [r for r in rows(whole[2]) if r["pathology"] == "mean" and r["aggregation"] == "pooled"]
    assert {r["undefined"] for r in means} == {"1"}
    assert "no test image shows it: Lung Lesion" in (whole[2] / "index.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_a_trial_without_any_defined_pathology_is_left_out_of_the_means_intervals(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        "data.pathologies=[Edema, Cardiomegaly]",
        "classifier.selection_pathologies=[Edema]",
        "encoder_classifier.selection_pathologies=[Edema]",
    )
    write_report(config, fill(tmp_path, config, absent="Cardiomegaly", blank=("Edema", 0)), Store.open(str(tmp_path)))
    mixed = [
        r
        for r in rows(tmp_path / "report" / "tiny")
        if r["trial"] == "all" and r["p"] == "0.5" and r["method"] == "gradcam"
    ]
    found = {
        (r["pathology"], r["interval"].split(",")[0]): r for r in mixed if r["aggregation"] == "per_image_true_pos_only"
    }
    for kind in ("trials", "patients", "trials and patients"):
        mean, edema = ([found[name, kind][end] for end in ("low", "high")] for name in ("mean", "Edema"))
        assert mean == edema != ["", ""]
    assert "(2 of 3)" in html(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_identical_trials_and_a_single_one_have_no_interval_over_trials(tmp_path: Path) -> None:
    for name, more, note in (("same", (), "identical trials"), ("one", ("sweep.trials=1",), "1 trial")):
        config = config_of(tmp_path / name, *more)
        write_report(config, fill(tmp_path / name, config, same=True), Store.open(str(tmp_path / name)))
        means = [
            r for r in rows(tmp_path / name / "report" / "tiny") if r["trial"] == "all" and r["pathology"] == "mean"
        ]
        kinds = {
            r["interval"].split(",")[0]: r
            for r in means
            if r["aggregation"] == "pooled" and r["p"] == "0.5" and r["method"] == "gradcam"
        }
        assert (kinds["trials"]["low"], kinds["trials"]["note"]) == ("", note)
        assert (kinds["trials and patients"]["low"], kinds["trials and patients"]["note"]) == ("", note)
        assert float(kinds["patients"]["low"]) < float(kinds["patients"]["high"]), (
            "given the networks, patients still vary"
        )
        contrasts = load(tmp_path / name / "report" / "tiny" / "contrasts.json")
        assert {c["holm_p"] for c in contrasts if "p=1.0" not in c["second"]} <= {None}


@pytest.mark.usefixtures("undrawn")
def test_settings_with_more_trials_are_paired_on_those_that_both_have(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        "sweep.p=[0.0]",
        "sweep.also=[{p: [0.9], trials: 5}]",
        "report.contrasts=[{p: [0.9, 0.0]}, {p: [0.0, 0.9]}]",
    )
    write_report(config, fill(tmp_path, config), Store.open(str(tmp_path)))
    found = load(tmp_path / "report" / "tiny" / "contrasts.json")
    assert [c["trials"] for c in found] == [3, 3], "one a method: the same two the other way round are no second test"
    assert all(c["p"] is not None and c["holm_p"] >= c["p"] for c in found)
    assert all(c["carried_by_patients"] >= 20 for c in found)
    assert re.search(r"mIoU is (higher|lower): .*Holm&#39;s p", html(tmp_path))


@pytest.mark.usefixtures("undrawn")
def test_a_trial_that_does_not_define_a_pathology_is_left_out_of_its_intervals(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    study = fill(tmp_path, config, blank=("Edema", 0))
    write_report(config, study, Store.open(str(tmp_path)))
    edema = [
        r
        for r in rows(tmp_path / "report" / "tiny")
        if r["trial"] == "all" and r["pathology"] == "Edema" and r["p"] == "0.5"
    ]
    kinds = {
        r["interval"].split(",")[0]: r
        for r in edema
        if r["aggregation"] == "per_image_true_pos_only" and r["method"] == "gradcam"
    }
    assert {kind: r["n"] for kind, r in kinds.items()}["trials"] == "2"
    assert all(r["low"] for r in kinds.values()), "two trials and the patients still vary"
    assert {r["undefined"] for r in kinds.values()} == {"1"}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("positive", "marked"), [(19, True), (20, False)])
def test_fewer_than_20_positive_patients_are_marked(positive: int, marked: bool, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write_report(config, fill(tmp_path, config, positive=("Edema", positive)), Store.open(str(tmp_path)))
    found = next(row for row in table(tmp_path / "report" / "tiny" / "table1.csv") if row[:2] == ["Edema", "CAM"])
    assert found[2].endswith("*") == marked
    notes = {
        r["note"]
        for r in rows(tmp_path / "report" / "tiny")
        if r["pathology"] == "Edema" and r["trial"] == "all" and "patients" in r["interval"]
    }
    assert (notes == {"fewer than 20 positive patients"}) == marked
    assert f"Edema {positive}" in html(tmp_path)
