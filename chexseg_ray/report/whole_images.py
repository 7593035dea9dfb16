"""Thresholds of 0, above which every score lies, so that a mask is the whole image: marked wherever they count."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from chexseg_ray.config.axes import SweepPoint
from chexseg_ray.report.cells import Table
from chexseg_ray.report.results import SettingResult
from chexseg_ray.report.text import DAGGER
from chexseg_ray.store.step import Record
from chexseg_ray.study.graph import Study

RULE = (
    f"{DAGGER} The threshold of a trial is 0, so its mask is the whole image. jobs/predict.py and jobs/export.py "
    "refuse such a model. Set segmentation.threshold_grid=fine, whose thresholds begin at 0.001."
)

Zeros = Mapping[SweepPoint, Sequence[str]]  # the pathologies of each built point whose threshold is 0


def zero_thresholds(study: Study, records: Mapping[str, Record]) -> dict[SweepPoint, list[str]]:
    """Find the built points that have a threshold of 0.

    Args:
        study: its graph.
        records: of what is built, by address.

    Returns:
        The pathologies with such a threshold, by point; points without any are left out.
    """
    found = {}
    for point, evaluation in study.points:
        record = records.get(evaluation.inputs["segmentation"].address)
        thresholds = record.metrics.get("thresholds", {}) if record else {}
        names = [name for name, chosen in thresholds.items() if chosen["threshold"] <= 0]
        if names:
            found[point] = names
    return found


def mark(settings: Sequence[SettingResult], zeros: Zeros, pathologies: Sequence[str]) -> list[SettingResult]:
    """Mark the estimates of IoU that rest on a threshold of 0, and the means that they are part of.

    Args:
        settings: all settings.
        zeros: of zero_thresholds.
        pathologies: K names.
    """
    marked = []
    for result in settings:
        names = {name for built in result.points for name in zeros.get(built.point, ())}
        if names:
            each = {
                aggregation: [
                    replace(estimate, whole_image=name in names)
                    for name, estimate in zip(pathologies, estimates, strict=True)
                ]
                for aggregation, estimates in result.pathologies.items()
            }
            means = {name: replace(estimate, whole_image=True) for name, estimate in result.mean.items()}
            result = replace(result, pathologies=each, mean=means)
        marked.append(result)
    return marked


def explained(table: Table) -> Table:
    """Add the meaning of the mark to the text of a table that has one.

    Args:
        table: of the page.
    """
    has_mark = any(DAGGER in cell.text for row in table.rows for cell in row[table.labels :])
    return replace(table, text=f"{table.text} {RULE}") if has_mark else table


def zero_notes(zeros: Zeros) -> list[str]:
    """Name the pathologies and trials with a threshold of 0, in one line for each setting.

    Args:
        zeros: of zero_thresholds.
    """
    trials: dict[SweepPoint, dict[str, list[int]]] = {}
    for point, names in zeros.items():
        for name in names:
            trials.setdefault(point.setting, {}).setdefault(name, []).append(point.trial)
    lines = []
    for setting, by_name in trials.items():
        texts = [
            f"{name} (trial{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))})"
            for name, numbers in by_name.items()
        ]
        lines.append(f"{setting.label}: {', '.join(texts)}")
    return lines
