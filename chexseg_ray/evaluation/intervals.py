"""Confidence intervals. Each says what it is conditional on; undefined is NaN with a reason, never 0."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student


@dataclass(frozen=True)
class Interval:
    """A mean, its interval and n; when the interval is undefined, low and high are NaN and `reason` says why."""

    mean: float
    low: float
    high: float
    n: int
    reason: str


def t_interval(values: Sequence[float], level: float) -> Interval:
    """Student's t interval of a mean over trials; conditional on the test set and on everything that the trials share.

    Args:
        values: one a trial; NaN trials are left out.
        level: coverage in (0, 1).
    """
    defined = [v for v in values if not math.isnan(v)]
    n = len(defined)
    mean = float(np.mean(defined)) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n, f"{n} trial{'s' if n != 1 else ''}")
    if len(set(defined)) == 1:
        return Interval(mean, math.nan, math.nan, n, "identical trials")
    half = float(student.ppf(0.5 + level / 2, n - 1)) * float(np.std(defined, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, "")
