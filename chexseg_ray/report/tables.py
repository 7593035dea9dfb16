"""results.csv with every number, and the main table with one row per setting for Markdown, HTML and the terminal."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence

from chexseg_ray.config.axes import SweepPoint, columns, setting_table
from chexseg_ray.progress import csv_cell
from chexseg_ray.report.results import AGGREGATIONS, FEW_PATIENTS, Estimate, PointResult, SettingResult, mean_of_defined
from chexseg_ray.report.text import DAGGER, ends, marked, with_interval

MEAN_COLUMN = "mIoU (interval)"
_NUMBERS = (
    "trial",
    "pathology",
    "aggregation",
    "iou",
    "low",
    "high",
    "n",
    "undefined",
    "interval",
    "given",
    "note",
    "record",
)
# for each interval what it is over and what it is conditional on; {} is the text of the expert masks
_KINDS = (
    ("trials", "the test set, {} and shared models"),
    ("patients", "the trained networks"),
    ("trials and patients", "{} and shared models"),
)


def long_csv(
    points: Sequence[PointResult], settings: Sequence[SettingResult], pathologies: Sequence[str], level: float
) -> str:
    """Write every number as one row: first each trial, then `all` trials with the intervals. Undefined is blank.

    Args:
        points: the built points.
        settings: all settings, in the study's order.
        pathologies: K names.
        level: coverage of the intervals.

    Returns:
        The text of results.csv.
    """
    stream = io.StringIO()
    axes = columns([setting.setting for setting in settings])
    writer = csv.DictWriter(stream, (*axes, *_NUMBERS), lineterminator="\n")
    writer.writeheader()
    for result in points:
        values = _axis_values(result.point, axes)
        writer.writerows(_safe(values | row) for row in _point_rows(result, pathologies))
    for setting in settings:
        values = _axis_values(setting.setting, axes)
        writer.writerows(_safe(values | row) for row in _setting_rows(setting, pathologies, level))
    return stream.getvalue()


def _safe(row: Mapping[str, object]) -> dict[str, object]:
    return {name: csv_cell(value) for name, value in row.items()}


def _point_rows(result: PointResult, pathologies: Sequence[str]) -> Iterator[dict[str, object]]:
    shared = {"trial": result.point.trial, "n": 1, "record": result.record.address}
    for aggregation in AGGREGATIONS:
        values = result.iou[aggregation].tolist()
        for pathology, value in zip(pathologies, values, strict=True):
            yield shared | _value_cells(pathology, aggregation, value, int(math.isnan(value)))
        undefined, mean = sum(map(math.isnan, values)), mean_of_defined(result.iou[aggregation])
        yield shared | _value_cells("mean", aggregation, mean, undefined)


def _setting_rows(result: SettingResult, pathologies: Sequence[str], level: float) -> Iterator[dict[str, object]]:
    masks = "the pool of expert masks" if result.setting.num_expert else "expert masks"
    for aggregation in AGGREGATIONS:
        estimates = [*zip(pathologies, result.pathologies[aggregation], strict=False)]
        estimates.append(("mean", result.mean[aggregation]))
        for pathology, estimate in estimates:
            undefined = result.undefined[aggregation] if pathology == "mean" else result.trials - estimate.trials.n
            shared = {"trial": "all"} | _value_cells(pathology, aggregation, estimate.mean, undefined)
            intervals = (estimate.trials, estimate.patients, estimate.both)
            for (kind, given), interval in zip(_KINDS, intervals, strict=True):
                note = interval.reason
                if not note and estimate.few and kind != "trials":
                    note = f"fewer than {FEW_PATIENTS} positive patients"
                yield shared | {
                    "low": _blank(interval.low),
                    "high": _blank(interval.high),
                    "n": interval.n,
                    "interval": f"{kind}, {level:g}",
                    "given": given.format(masks),
                    "note": note,
                }


def _value_cells(pathology: str, aggregation: str, iou: float, undefined: int) -> dict[str, object]:
    return {"pathology": pathology, "aggregation": aggregation, "iou": _blank(iou), "undefined": undefined}


def _axis_values(point: SweepPoint, axes: Sequence[str]) -> dict[str, object]:
    """Return the point's value on each axis; blank if it has none."""
    values = {name: getattr(point, name) for name in axes}
    return {name: value if value is not None else "" for name, value in values.items()}


def _blank(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def main_table(
    settings: Sequence[SettingResult], aggregation: str, pathologies: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Make the main table.

    Args:
        settings: all settings, in the study's order.
        aggregation: one of AGGREGATIONS.
        pathologies: K names.

    Returns:
        The names of the columns, and a row for each setting: its values, `n of m` trials, the mean IoU with its
        intervals, and the IoU of each pathology: with * if few patients show it, with † (as the mean) if a
        trial's threshold is 0, and with the number of trials that define it if not all do.
    """
    headings, values = setting_table([result.setting for result in settings])
    rows = []
    for result, cells in zip(settings, values, strict=True):
        mean = result.mean[aggregation]
        ious = [_iou_text(estimate, result.trials) for estimate in result.pathologies[aggregation]]
        mark = DAGGER if mean.whole_image else ""
        intervals = [with_interval(mean.both) + mark, ends(mean.trials), ends(mean.patients)]
        trials = f"{result.trials} of {result.planned}"
        rows.append([*cells, trials, *intervals, *(ious or ["–"] * len(pathologies))])
    return [*headings, "trials", MEAN_COLUMN, "over trials", "over patients", *pathologies], rows


def _iou_text(estimate: Estimate, trials: int) -> str:
    defined = estimate.trials.n
    return f"{marked(estimate)} ({defined} of {trials})" if 0 < defined < trials else marked(estimate)
