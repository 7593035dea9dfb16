"""Contrasts are paired, corrected and marked."""

import re
from pathlib import Path

import numpy as np
import pytest
from report.fakes import fill, load
from report.reports import config_of, html, rows
from scipy import stats

from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.report.page import write_report
from chexseg_ray.store.store import Store

ONE_PATHOLOGY = (
    "data.pathologies=[Edema]",
    "classifier.selection_pathologies=[Edema]",
    "encoder_classifier.selection_pathologies=[Edema]",
)


def test_contrasts_are_paired_by_trial_and_corrected(whole: tuple[Path, StudyConfig, Path]) -> None:
    folder = whole[2]
    found = load(folder / "contrasts.json")
    assert len(found) == 4 + 4 + 2, "one for each method and init where both settings are"
    assert "Contrast that is not in this study: init: moco against chexpert" in (folder / "index.html").read_text()
    values = {
        (r["method"], r["init"], r["p"], r["trial"]): float(r["iou"])
        for r in rows(folder)
        if r["pathology"] == "mean" and r["aggregation"] == "pooled" and r["trial"] != "all"
    }
    first = next(c for c in found if c["first"].startswith("gradcam p=0.9 init=random") and "p=0.0" in c["second"])
    differences = [values["gradcam", "random", "0.9", t] - values["gradcam", "random", "0.0", t] for t in "012"]
    assert first["difference"] == pytest.approx(np.mean(differences))
    low, high = stats.t.interval(0.95, 2, np.mean(differences), stats.sem(differences))
    assert first["intervals"]["trials"] == pytest.approx([low, high])
    ordered = sorted(found, key=lambda c: c["p"])
    highest = 0.0
    for rank, contrast in enumerate(ordered):
        highest = max(highest, min(1.0, contrast["p"] * (len(found) - rank)))
        assert contrast["holm_p"] == pytest.approx(highest)


@pytest.mark.usefixtures("undrawn")
def test_a_difference_that_few_patients_carry_is_marked(tmp_path: Path) -> None:
    config = config_of(tmp_path, *ONE_PATHOLOGY)
    write_report(config, fill(tmp_path, config, positive=("Edema", 12)), Store.open(str(tmp_path)))
    found = load(tmp_path / "report" / "tiny" / "contrasts.json")
    assert {c["carried_by_patients"] for c in found} == {12}
    assert re.search(r"[+-]0\.\d{3}\* \(", html(tmp_path))


@pytest.mark.usefixtures("undrawn")
def test_without_a_positive_test_image_nothing_is_said_of_a_difference(tmp_path: Path) -> None:
    config = config_of(tmp_path, *ONE_PATHOLOGY)
    write_report(config, fill(tmp_path, config, absent="Edema"), Store.open(str(tmp_path)))
    page = re.sub(r"data:image/png;base64,[^\"]*|<style>.*?</style>", "", html(tmp_path), flags=re.DOTALL)
    assert "nan" not in page.replace("significant", "")
    assert not re.search(r"mIoU (differs|is higher|is lower)|no difference", html(tmp_path))
