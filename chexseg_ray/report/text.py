"""Numbers, intervals and tables as text."""

import math
from collections.abc import Sequence

from chexseg_ray.evaluation.intervals import Interval
from chexseg_ray.report.results import FEW_PATIENTS, Estimate

DAGGER = "†"  # a trial's threshold is 0: report.whole_images
STAR = f"* fewer than {FEW_PATIENTS} positive patients."


def number(value: float, digits: int = 3) -> str:
    """Return `value` with this many `digits` behind the point; a dash if it is undefined (NaN)."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def percent(share: float) -> str:
    """Return `share`, in [0, 1], as `95 %`."""
    return f"{100 * share:g} %"


def ends(interval: Interval) -> str:
    """Return the ends of `interval` as `0.261 to 0.279`, or the reason why there is no interval."""
    return interval.reason if interval.reason else f"{number(interval.low)} to {number(interval.high)}"


def with_interval(interval: Interval) -> str:
    """Return `interval` as `0.270 (0.261 to 0.279)`, or the mean with the reason why there is none in brackets."""
    return f"{number(interval.mean)} ({interval.reason if math.isnan(interval.low) else ends(interval)})"


def marked(estimate: Estimate) -> str:
    """Return the mean of `estimate`, with * if few patients show the pathology, and † if a trial's threshold is 0."""
    return number(estimate.mean) + ("*" if estimate.few else "") + (DAGGER if estimate.whole_image else "")


def p_text(p: float) -> str:
    """Return the p-value `p` as `< .001`, with three decimals, `> .999`, or `1`; a dash if there is none (NaN).

    Near .05 it has four decimals, so that it is seen on which side it lies.
    """
    if math.isnan(p):
        return "–"
    if p < 0.001:
        return "< .001"
    if p >= 0.9995:
        return "1" if p == 1 else "> .999"
    return f"{p:.4f}" if f"{p:.3f}" == "0.050" else f"{p:.3f}"


def markdown(rows: Sequence[Sequence[str]], names: Sequence[str]) -> str:
    """Return a Markdown table.

    Args:
        rows: the cells of each row.
        names: of the columns, for the heading.
    """
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
