"""Radiologists against the chosen models (Figure 5), and how much of the gap semi-supervision closes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.evaluation.bootstrap import mean_over_pathologies
from chexseg_ray.evaluation.intervals import Interval, expanded_tail, percentile_interval, undefined
from chexseg_ray.report.cells import Cell, Links, Table
from chexseg_ray.report.paper import above_radiologists
from chexseg_ray.report.paper_tables import estimate_cell
from chexseg_ray.report.results import Estimate, Floats, PointResult, SettingResult, TestSet, estimate, mean_of_defined
from chexseg_ray.report.text import STAR
from chexseg_ray.study.choice import Chosen

READER = "radiologists"


@dataclass(frozen=True)
class Rival:
    """One reader or model of the comparison.

    Args:
        name: READER, or the kind of the model.
        mean: pooled mean IoU.
        pathologies: K estimates of pooled IoU.
        replicates: float64 [B], of the mean.
        link: the anchor of its records.
    """

    name: str
    mean: Estimate
    pathologies: list[Estimate]
    replicates: Floats
    link: str


@dataclass(frozen=True)
class Comparison:
    """Radiologists and models on the same test images.

    Args:
        rivals: the radiologists first, where there are some.
        gap_closed: (semi - weak) / (reader - weak) in pooled mean IoU, with its interval over patients.
    """

    rivals: list[Rival]
    gap_closed: Interval


def compare(
    reader: PointResult | None,
    chosen: Mapping[str, Chosen],
    settings: Sequence[SettingResult],
    test: TestSet | None,
    level: float,
    links: Links,
) -> Comparison:
    """Compare the radiologists with the best setting of each kind, as validation chose them.

    Args:
        reader: the radiologists' result; None where there are no masks of theirs.
        chosen: the best setting of each kind.
        settings: all settings.
        test: the test set; None where nothing is built.
        level: coverage of the intervals, in (0, 1).
        links: anchors of the settings.
    """
    if test is None:
        return Comparison([], undefined(math.nan, 0, "nothing is built"))
    rivals = [_reader(reader, test, level)] if reader else []
    for kind in ("semi-supervised", "weakly supervised", "fully supervised"):
        result = next((s for s in settings if kind in chosen and s.setting == chosen[kind].setting and s.points), None)
        if result is not None:
            mean, pathologies = result.mean["pooled"], result.pathologies["pooled"]
            replicates = result.replicates_of([*result.replicates]).mean(axis=1)
            rivals.append(Rival(kind, mean, pathologies, replicates, links[result.setting]))
    return Comparison(rivals, _gap_closed({rival.name: rival for rival in rivals}, level))


def _reader(reader: PointResult, test: TestSet, level: float) -> Rival:
    """The radiologists' estimates; as they are not trained, there is one trial."""
    iou = reader.iou["pooled"]
    drawn = reader.sums["pooled"].replicates(test.weights)  # [B, K]
    means = mean_over_pathologies(drawn, test.defined("pooled"))
    carried = test.carried_by("pooled", drawn)
    pathologies = [
        estimate([float(value)], drawn[:, [k]], int(test.positive[k]), level, 1) for k, value in enumerate(iou)
    ]
    mean = estimate([mean_of_defined(iou)], means[:, None], carried, level, 1)
    return Rival(READER, mean, pathologies, means, "benchmark")


def _gap_closed(rivals: Mapping[str, Rival], level: float) -> Interval:
    """(semi - weak) / (reader - weak) with its interval over patients, unless the gap itself may be 0."""
    if not {READER, "semi-supervised", "weakly supervised"} <= rivals.keys():
        return undefined(math.nan, 0, "needs radiologists, a semi-supervised and a weakly supervised model")
    reader, semi, weak = rivals[READER], rivals["semi-supervised"], rivals["weakly supervised"]
    patients = min(rival.mean.patients.n for rival in (reader, semi, weak))
    gap = reader.mean.mean - weak.mean.mean
    if not gap > 0:
        return undefined(math.nan, patients, "the weakly supervised model is not below the radiologists")
    closed = (semi.mean.mean - weak.mean.mean) / gap
    gaps = reader.replicates - weak.replicates
    if patients > 1 and (gaps <= 0).mean() > expanded_tail(level, patients):
        return undefined(closed, patients, "no interval, as there may be no gap")
    drawn = np.divide(semi.replicates - weak.replicates, gaps, out=np.full(gaps.shape, np.nan), where=gaps > 0)
    return percentile_interval(closed, drawn, patients, level)


def reader_table(config: StudyConfig, comparison: Comparison) -> list[Table]:
    """A table of pooled IoU by pathology, one column for the radiologists and each model.

    Where there are both, a last column shows by how many per cent the semi-supervised model is above the radiologists.

    Args:
        config: of the study.
        comparison: of models with radiologists.

    Returns:
        One table; none where nothing is built.
    """
    rivals = comparison.rivals
    if not rivals:
        return []
    by_name = {rival.name: rival for rival in rivals}
    reader, semi = by_name.get(READER), by_name.get("semi-supervised")
    rows = []
    for k in (-1, *range(len(config.data.pathologies))):
        name = "Mean IoU" if k < 0 else config.data.pathologies[k]
        cells = [Cell(name), *(estimate_cell(_task_estimate(rival, k), rival.link) for rival in rivals)]
        if semi and reader:
            above = _per_cent_above(_task_estimate(semi, k).mean, _task_estimate(reader, k).mean)
            cells.append(Cell(above, paper=above_radiologists(config, name)))
        rows.append(tuple(cells))
    names = ["Task", *by_name]
    if semi and reader:
        names.append("semi-supervised above radiologists")
    text = (
        "Pooled IoU on the same test images, by the same code; models: the best setting of each kind by validation. "
        f"{STAR}"
    )
    if reader:
        text += " Radiologists' intervals are over patients."
    title = "Radiologists and models" if reader else "The best of each kind"
    return [Table("radiologists" if reader else "best", title, text, tuple(names), 1, tuple(rows))]


def _task_estimate(rival: Rival, k: int) -> Estimate:
    """The estimate of pathology k, or for -1 of the mean."""
    return rival.mean if k < 0 else rival.pathologies[k]


def _per_cent_above(value: float, reference: float) -> str:
    """How far a value is above a reference, such as `+12%`; a dash where that is undefined."""
    if math.isnan(value) or not reference > 0:
        return "–"
    return f"{value / reference - 1:+.0%}"
