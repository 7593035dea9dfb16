"""Differences between two settings on the same test images: intervals, p-values of those named beforehand, and what would separate them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy.stats import nct

from chexseg_ray.evaluation.intervals import (
    Combined,
    Floats,
    Interval,
    cochran_cox_t,
    combined_interval,
    p_value,
    percentile_interval,
    t_interval,
)

_MOST = 1000  # trials that anyone might run


@dataclass(frozen=True)
class Difference:
    """first - second, paired by trial and by patient: three intervals, as of a single setting; the p-value is that of `both`."""

    trials: Interval
    patients: Interval
    both: Combined
    p_value: float


def paired_difference(
    first: Sequence[float], second: Sequence[float], first_replicates: Floats, second_replicates: Floats, patients: int, level: float
) -> Difference:
    """The difference of two settings' means. Interval and p-value over trials and patients are Cochran and Cox's, which find no more than
    1 - level of differences that are none (benchmarks/coverage.py).

    Args:
        first: one value a trial, in the order of `second`'s; trial t of both shares weak subset and seed.
        second: the other setting's.
        first_replicates: float64 [B], the mean over the trials on resampled patients.
        second_replicates: the other setting's, on the same resampled patients.
        patients: how many the estimate is about.
        level: coverage in (0, 1).

    Raises:
        ValueError: the settings have different numbers of trials.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} trials cannot be paired")
    values = [a - b for a, b in zip(first, second, strict=True)]
    replicates = first_replicates - second_replicates
    both = combined_interval(values, replicates, patients, level, cochran_cox_t)
    alone = percentile_interval(both.interval.mean, replicates, patients, level)
    return Difference(t_interval(values, level), alone, both, p_value(both, cochran_cox_t))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction, in the given order; NaN stays NaN and counts as a test that was planned."""
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    out, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        out[i] = highest
    return out


def power(difference: float, trial_variance: float, patient_variance: float, trials: int, patients: int, level: float) -> float:
    """The chance that the combined test finds a true difference (noncentral t, Satterthwaite's degrees of freedom).

    Args:
        difference: the true one.
        trial_variance: between trials, of one trial's difference.
        patient_variance: of the difference when patients are drawn anew, at this number of patients.
        trials: n, at least 2.
        patients: that the difference is about, at least 2.
        level: 1 - the test's significance level.
    """
    variances, dfs = (trial_variance / trials, patient_variance), (trials - 1, patients - 1)
    if sum(variances) == 0:
        return 1.0 if difference else 1 - level
    df = sum(variances) ** 2 / sum(v * v / df for v, df in zip(variances, dfs, strict=True))
    shift = abs(difference) / math.sqrt(sum(variances))
    found = float(nct.sf(cochran_cox_t(level, variances, dfs), df, shift))
    return 1.0 if math.isnan(found) else found  # scipy gives NaN where the shift is too large to tell from certainty


def trials_needed(both: Combined, patients: int, level: float, wanted: float = 0.8) -> int | None:
    """The smallest number of trials, on these patients, with which a true difference of the observed size is found with probability
    `wanted`; None when no number up to 1000 does, as the patients' variance stays."""
    mean, n = both.interval.mean, both.interval.n
    if both.interval.reason or not mean:
        return None

    def enough(trials: int) -> bool:
        return power(mean, both.trial_variance * n, both.patient_variance, trials, patients, level) >= wanted

    return _smallest(enough, 2, _MOST)


def patients_needed(both: Combined, patients: int, level: float, wanted: float = 0.8) -> int | None:
    """The same for patients, with these trials, when the patients' variance falls as 1 / P; None when not even 1000 times as many do."""
    mean, n = both.interval.mean, both.interval.n
    if both.interval.reason or not mean:
        return None

    def enough(number: int) -> bool:
        return power(mean, both.trial_variance * n, both.patient_variance * patients / number, n, number, level) >= wanted

    return _smallest(enough, 2, _MOST * patients)


def _smallest(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """By bisection, as power grows with the number."""
    if not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
