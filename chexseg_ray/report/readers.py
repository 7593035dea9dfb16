"""Radiologists against models (Figure 5): another reader's masks beside the chosen models', and how much of the gap is closed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chexseg_ray.choice import Chosen
from chexseg_ray.config import StudyConfig
from chexseg_ray.evaluation.bootstrap import mean_over_pathologies
from chexseg_ray.evaluation.intervals import Interval, expanded_tail, percentile_interval, undefined
from chexseg_ray.report.paper import above_radiologists
from chexseg_ray.report.paper_tables import Cell, Links, Table, estimate_cell
from chexseg_ray.report.results import Estimate, Floats, PointResult, SettingResult, TestSet, estimate, mean_of_defined
from chexseg_ray.report.tables import STAR

READER = "radiologists"


@dataclass(frozen=True)
class Rival:
    """One row of the comparison: mean and K estimates of pooled IoU, and the mean's replicates float64 [B]."""

    name: str
    mean: Estimate
    pathologies: list[Estimate]
    replicates: Floats
    link: str


@dataclass(frozen=True)
class Comparison:
    """The reader first, where there is one; `gap_closed` is (semi - weak) / (reader - weak) in mean IoU, an interval over patients."""

    rivals: list[Rival]
    gap_closed: Interval


def compare(
    reader: PointResult | None, chosen: Mapping[str, Chosen], settings: Sequence[SettingResult], test: TestSet | None, level: float, links: Links
) -> Comparison:
    """The reader and the best semi- and weakly supervised settings, as validation chose them."""
    if test is None:
        return Comparison([], undefined(math.nan, 0, "nothing is built"))
    rivals = [_reader(reader, test, level)] if reader else []
    for kind in ("semi-supervised", "weakly supervised", "fully supervised"):
        result = next((s for s in settings if kind in chosen and s.setting == chosen[kind].setting and s.points), None)
        if result is not None:
            drawn = result.replicates_of([*result.replicates]).mean(axis=1)
            rivals.append(Rival(kind, result.mean["pooled"], result.pathologies["pooled"], drawn, links[result.setting]))
    return Comparison(rivals, _gap_closed({rival.name: rival for rival in rivals}, level))


def _reader(reader: PointResult, test: TestSet, level: float) -> Rival:
    drawn = reader.sums["pooled"].replicates(test.weights)
    means = mean_over_pathologies(drawn, test.defined("pooled"))
    carried = test.carried_by("pooled", drawn)
    each = [estimate([float(v)], drawn[:, [k]], int(test.positive[k]), level, 1) for k, v in enumerate(reader.iou["pooled"])]
    mean = estimate([mean_of_defined(reader.iou["pooled"])], means[:, None], carried, level, 1)
    return Rival(READER, mean, each, means, "benchmark")


def _gap_closed(rivals: Mapping[str, Rival], level: float) -> Interval:
    if not {READER, "semi-supervised", "weakly supervised"} <= rivals.keys():
        return undefined(math.nan, 0, "needs radiologists, a semi-supervised and a weakly supervised model")
    reader, semi, weak = own = [rivals[name] for name in (READER, "semi-supervised", "weakly supervised")]
    patients, gap = min(rival.mean.patients.n for rival in own), reader.mean.mean - weak.mean.mean
    if not gap > 0:
        return undefined(math.nan, patients, "the weakly supervised model is not below the radiologists")
    closed, below = (semi.mean.mean - weak.mean.mean) / gap, reader.replicates - weak.replicates
    if patients > 1 and (below <= 0).mean() > expanded_tail(level, patients):
        return undefined(closed, patients, "no interval, as there may be no gap")
    drawn = np.divide(semi.replicates - weak.replicates, below, out=np.full(below.shape, np.nan), where=below > 0)
    return percentile_interval(closed, drawn, patients, level)


def reader_table(config: StudyConfig, comparison: Comparison) -> list[Table]:
    """Pooled IoU of reader and models by pathology, and by how many per cent the semi-supervised model is above the reader."""
    rivals = comparison.rivals
    if not rivals:
        return []
    semi, reader = (next((r for r in rivals if r.name == name), None) for name in ("semi-supervised", READER))
    rows = []
    for k in (-1, *range(len(config.data.pathologies))):
        name = "Mean IoU" if k < 0 else config.data.pathologies[k]
        own = [rival.mean if k < 0 else rival.pathologies[k] for rival in rivals]
        cells = [estimate_cell(e, rival.link) for e, rival in zip(own, rivals, strict=True)]
        above = ""
        if semi and reader:
            values = [(rival.mean if k < 0 else rival.pathologies[k]).mean for rival in (semi, reader)]
            above = "–" if math.isnan(values[0]) or not values[1] > 0 else f"{values[0] / values[1] - 1:+.0%}"
        rows.append((Cell(name), *cells, *([Cell(above, paper=above_radiologists(config, name))] if semi and reader else [])))
    names = ("Task", *(rival.name for rival in rivals), *(["semi-supervised above radiologists"] if semi and reader else []))
    text = f"Pooled IoU on the same test images, by the same code; models: the best setting of each kind by validation. {STAR}"
    title = "Radiologists and models" if reader else "The best of each kind"
    return [
        Table(
            "radiologists" if reader else "best",
            title,
            text + (" Radiologists' intervals are over patients." if reader else ""),
            names,
            1,
            tuple(rows),
        )
    ]
