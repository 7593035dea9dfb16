"""Every number of a study as rows, for other programs: results.csv and .parquet, estimates.csv, dictionary.csv."""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chexseg_ray.config.axes import AXES, SweepPoint, columns
from chexseg_ray.evaluation.intervals import Interval
from chexseg_ray.progress import csv_cell
from chexseg_ray.report.results import AGGREGATIONS, FEW_PATIENTS, Estimate, PointResult, SettingResult, mean_of_defined

Row = Mapping[str, Any]

# for each interval its name, what it is over, and what it is conditional on; {} is the text of the expert masks
_KINDS = (
    ("trials", "trials", "the test set, {} and shared models"),
    ("patients", "patients", "the trained networks"),
    ("both", "trials and patients", "{} and shared models"),
)
_SHARED = {
    "pathology": "the pathology; `mean` is the mean over the defined ones",
    "aggregation": f"how pixels become an IoU: {', '.join(AGGREGATIONS)} (docs/report.md)",
    "iou": "intersection over union, 0 to 1; blank where undefined",
}
_UNDEFINED = {"undefined": "number of trials (of `mean`: pathologies) in which the IoU is undefined"}
_RESULTS = {
    "trial": "number of the trial; `all` for numbers over all built trials",
    **_SHARED,
    "low": "lower end of the interval; blank for single trials",
    "high": "upper end of the interval",
    "n": "number of trials or patients behind the interval; 1 for single trials",
    **_UNDEFINED,
    "interval": "what the interval is over, and its coverage; blank for single trials",
    "given": "what the interval holds fixed",
    "note": "why the interval is as it is, or that few patients show the pathology",
    "record": "address of the trial's evaluation in the store; blank for `all`",
}
_ESTIMATES = {
    "trials": "number of built trials",
    **_SHARED,
    **_UNDEFINED,
    **{
        f"{name}_{part}": f"{text} of the interval over {over}"
        for name, over, _ in _KINDS
        for part, text in (("low", "lower end"), ("high", "upper end"), ("n", "number behind"), ("note", "note"))
    },
}
_TYPES = {"iou": pa.float64(), "low": pa.float64(), "high": pa.float64(), "n": pa.int64(), "undefined": pa.int64()}


def long_files(
    points: Sequence[PointResult], settings: Sequence[SettingResult], pathologies: Sequence[str], level: float
) -> dict[str, bytes]:
    """Write every number for other programs.

    Args:
        points: the built points.
        settings: all settings, in the study's order.
        pathologies: K names.
        level: coverage of the intervals.

    Returns:
        {file name: bytes}: results.csv and results.parquet (first each trial, then `all` trials, one row for each
        interval), estimates.csv (one row for each setting, pathology and aggregation), and dictionary.csv, which
        explains their columns.
    """
    axes = columns([setting.setting for setting in settings])
    rows = [axis_values(result.point, axes) | row for result in points for row in _point_rows(result, pathologies)]
    estimates = []
    for setting in settings:
        values = axis_values(setting.setting, axes)
        rows += [values | row for row in _setting_rows(setting, pathologies, level)]
        estimates += [values | row for row in _estimate_rows(setting, pathologies)]
    meanings = {axis.name: axis.meaning for axis in AXES}
    of_axes = {name: meanings[name] for name in axes}
    dictionary = [
        {"file": file, "column": column, "meaning": meaning}
        for file, own in (("results.csv, results.parquet", _RESULTS), ("estimates.csv", _ESTIMATES))
        for column, meaning in (of_axes | own).items()
    ]
    return {
        "results.csv": _csv([*axes, *_RESULTS], rows),
        "results.parquet": _parquet(axes, rows, of_axes | _RESULTS),
        "estimates.csv": _csv([*axes, *_ESTIMATES], estimates),
        "dictionary.csv": _csv(["file", "column", "meaning"], dictionary),
    }


def axis_values(point: SweepPoint, axes: Sequence[str]) -> dict[str, Any]:
    """Return a point's value on each axis, with a word where it has none, so that no program drops the row.

    Args:
        point: a sweep point or a setting.
        axes: names of axes.

    Returns:
        {axis: value}; `expert` is the method of points that draw no pseudo mask, `all` the number of all expert masks.
    """
    values = {name: getattr(point, name) for name in axes}
    words = {"method": "expert"}
    return {name: words.get(name, "all") if value is None else value for name, value in values.items()}


def _point_rows(result: PointResult, pathologies: Sequence[str]) -> Iterator[dict[str, Any]]:
    shared = {"trial": result.point.trial, "n": 1, "record": result.record.address}
    for aggregation in AGGREGATIONS:
        values = result.iou[aggregation].tolist()
        for pathology, value in zip(pathologies, values, strict=True):
            yield shared | _value(pathology, aggregation, value, int(math.isnan(value)))
        undefined, mean = sum(map(math.isnan, values)), mean_of_defined(result.iou[aggregation])
        yield shared | _value("mean", aggregation, mean, undefined)


def _setting_rows(result: SettingResult, pathologies: Sequence[str], level: float) -> Iterator[dict[str, Any]]:
    masks = "the pool of expert masks" if result.setting.num_expert else "expert masks"
    for shared, estimate in _estimates(result, pathologies):
        for (_, over, given), interval in zip(_KINDS, _intervals(estimate), strict=True):
            yield shared | {
                "trial": "all",
                "low": _defined(interval.low),
                "high": _defined(interval.high),
                "n": interval.n,
                "interval": f"{over}, {level:g}",
                "given": given.format(masks),
                "note": _note(over, estimate, interval),
            }


def _estimate_rows(result: SettingResult, pathologies: Sequence[str]) -> Iterator[dict[str, Any]]:
    for shared, estimate in _estimates(result, pathologies):
        row = shared | {"trials": result.trials}
        for (name, over, _), interval in zip(_KINDS, _intervals(estimate), strict=True):
            row |= {
                f"{name}_low": _defined(interval.low),
                f"{name}_high": _defined(interval.high),
                f"{name}_n": interval.n,
                f"{name}_note": _note(over, estimate, interval),
            }
        yield row


def _estimates(result: SettingResult, pathologies: Sequence[str]) -> Iterator[tuple[dict[str, Any], Estimate]]:
    """Yield the estimates of a setting, each with the cells that all of its rows share."""
    for aggregation in AGGREGATIONS:
        estimates = [*zip(pathologies, result.pathologies[aggregation], strict=False)]  # none where nothing is built
        estimates.append(("mean", result.mean[aggregation]))
        for pathology, estimate in estimates:
            undefined = result.undefined[aggregation] if pathology == "mean" else result.trials - estimate.trials.n
            yield _value(pathology, aggregation, estimate.mean, undefined), estimate


def _intervals(estimate: Estimate) -> tuple[Interval, Interval, Interval]:
    return estimate.trials, estimate.patients, estimate.both


def _note(over: str, estimate: Estimate, interval: Interval) -> str:
    if not interval.reason and estimate.few and over != "trials":
        return f"fewer than {FEW_PATIENTS} positive patients"
    return interval.reason


def _value(pathology: str, aggregation: str, iou: float, undefined: int) -> dict[str, Any]:
    return {"pathology": pathology, "aggregation": aggregation, "iou": _defined(iou), "undefined": undefined}


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _csv(names: Sequence[str], rows: Sequence[Row]) -> bytes:
    """CSV with a header; None is blank."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue().encode()


def _parquet(axes: Sequence[str], rows: Sequence[Row], meanings: Mapping[str, str]) -> bytes:
    """Parquet of the rows of results.csv; the meaning of each column is in its metadata, blank cells are null."""
    fields, arrays = [], []
    for name, meaning in meanings.items():
        values = [row.get(name) for row in rows]
        kind = _TYPES.get(name, _type_of(values) if name in axes else pa.string())
        if kind == pa.string():
            values = [None if value is None or value == "" else str(value) for value in values]
        fields.append(pa.field(name, kind, metadata={"meaning": meaning}))
        arrays.append(pa.array(values, type=kind))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _type_of(values: Sequence[Any]) -> pa.DataType:
    """The type of an axis: whole numbers, numbers, or text where a value is a word."""
    if all(type(value) is int for value in values):
        return pa.int64()
    return pa.float64() if all(type(value) in (int, float) for value in values) else pa.string()
