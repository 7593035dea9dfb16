"""The long CSV with every number, and the main table with a row a setting, as cells for Markdown, HTML and the terminal."""

import csv
import io
import math
from collections.abc import Sequence

from chexseg_ray.evaluation.intervals import Interval
from chexseg_ray.pipeline import SweepPoint
from chexseg_ray.report.results import AGGREGATIONS, FEW_PATIENTS, Estimate, PointResult, SettingResult, mean_of_defined

COLUMNS = (
    "method", "init", "p", "weak_n", "num_expert", "architecture", "encoder", "trial", "pathology", "aggregation", "iou", "low", "high",
    "n", "undefined", "interval", "given", "note", "record",
)  # fmt: skip
# of each interval what it is over, and what it is conditional on; {} are the expert masks, or the pool that each trial draws its own from
KINDS = (
    ("trials", "the test set, {} and shared models"),
    ("patients", "the trained networks"),
    ("trials and patients", "{} and shared models"),
)
STAR = f"* fewer than {FEW_PATIENTS} positive patients."


def number(value: float, digits: int = 3) -> str:
    """A number for people; an undefined one is a dash."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def with_interval(interval: Interval) -> str:
    """`.270 (.261 to .279)`; without an interval, the reason in brackets."""
    if math.isnan(interval.low):
        return f"{number(interval.mean)} ({interval.reason})"
    return f"{number(interval.mean)} ({number(interval.low)} to {number(interval.high)})"


def setting_cells(result: SettingResult) -> list[str]:
    """method, init, weak_n, num_expert, network, p of a setting, as text."""
    s = result.setting
    network = f"{s.architecture}/{s.encoder}"
    return [s.method or "expert masks only", s.init, str(s.weak_n or "–"), str(s.num_expert or "all"), network, f"{s.p:g}"]


def long_csv(points: Sequence[PointResult], settings: Sequence[SettingResult], pathologies: Sequence[str], level: float) -> str:
    """Every number as one row: trials one by one, then trial `all` with its interval. Blank where undefined."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in points:
        s = result.point
        axes = _axes(s) | {"trial": s.trial}
        for name in AGGREGATIONS:
            iou = result.iou[name]
            rows = [*zip(pathologies, iou.tolist(), strict=True), ("mean", mean_of_defined(iou))]
            for pathology, value in rows:
                own = {"pathology": pathology, "aggregation": name, "iou": _blank(value), "n": 1, "record": result.record.address}
                writer.writerow(axes | own | {"undefined": sum(v != v for v in iou.tolist()) if pathology == "mean" else int(math.isnan(value))})
    for setting in settings:
        axes = _axes(setting.setting) | {"trial": "all"}
        for name in AGGREGATIONS:
            for pathology, found in [*zip(pathologies, setting.pathologies[name], strict=False), ("mean", setting.mean[name])]:
                undefined = setting.undefined[name] if pathology == "mean" else setting.trials - found.trials.n
                shared = axes | {"pathology": pathology, "aggregation": name, "iou": _blank(found.mean), "undefined": undefined}
                for (kind, given), interval in zip(KINDS, (found.trials, found.patients, found.both), strict=True):
                    few = "" if kind == "trials" or not found.few or interval.reason else f"fewer than {FEW_PATIENTS} positive patients"
                    ends = {"low": _blank(interval.low), "high": _blank(interval.high), "n": interval.n, "interval": f"{kind}, {level:g}"}
                    masks = "the pool of expert masks" if setting.setting.num_expert else "expert masks"
                    writer.writerow(shared | ends | {"given": given.format(masks), "note": interval.reason or few})
    return stream.getvalue()


def _axes(s: SweepPoint) -> dict[str, object]:
    return {
        "method": s.method or "", "init": s.init, "p": s.p, "weak_n": s.weak_n, "num_expert": s.num_expert or "",
        "architecture": s.architecture, "encoder": s.encoder,
    }  # fmt: skip


def _blank(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def main_rows(settings: Sequence[SettingResult], aggregation: str, count: int) -> list[list[str]]:
    """Setting, n of m trials, mean with its intervals, and one IoU for each of `count` pathologies (* where few patients show it; in how many
    trials it is defined, unless in all)."""
    rows = []
    for result in settings:
        mean = result.mean[aggregation]
        each = [marked(own) + _of_trials(own, result.trials) for own in result.pathologies[aggregation]] or ["–"] * count
        intervals = [with_interval(mean.both), ends(mean.trials), ends(mean.patients)]
        rows.append([*setting_cells(result), f"{result.trials} of {result.planned}", *intervals, *each])
    return rows


def marked(own: Estimate) -> str:
    """The mean, with * where few patients carry it."""
    return number(own.mean) + ("*" if own.few else "")


def _of_trials(own: Estimate, trials: int) -> str:
    return f" ({own.trials.n} of {trials})" if 0 < own.trials.n < trials else ""


def ends(interval: Interval) -> str:
    """`.261 to .279`, or why there are none."""
    return interval.reason if interval.reason else f"{number(interval.low)} to {number(interval.high)}"


def header(pathologies: Sequence[str]) -> list[str]:
    """The main table's column names."""
    return ["masks", "init", "weak_n", "experts", "network", "p", "trials", "mIoU (interval)", "over trials", "over patients", *pathologies]


def markdown(rows: Sequence[Sequence[str]], names: Sequence[str]) -> str:
    """A GitHub table."""
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def terminal(rows: Sequence[Sequence[str]], names: Sequence[str], columns: int) -> str:
    """The first columns, aligned."""
    cut = [list(row)[:columns] for row in [names, *rows]]
    widths = [max(len(row[i]) for row in cut) for i in range(columns)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cut)
