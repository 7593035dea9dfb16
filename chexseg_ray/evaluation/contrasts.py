"""Differences between two settings on the same test images: intervals, p-values of those named beforehand, and what would separate them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, norm
from scipy.stats import t as student

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
_MIDDLES = (np.arange(200) + 0.5) / 200  # of equally likely classes


@dataclass(frozen=True)
class Difference:
    """first - second, paired by trial and by patient: three intervals, as of a single setting; the p-value is that of `both`."""

    trials: Interval
    patients: Interval
    both: Combined
    p_value: float


def paired_difference(
    first: Sequence[float], second: Sequence[float], first_replicates: Floats, second_replicates: Floats, patients: float, level: float
) -> Difference:
    """The difference of two settings' means. Interval and p-value over trials and patients are Cochran and Cox's, which find no more than
    1 - level of differences that are none (benchmarks/coverage.py).

    Args:
        first: one value a trial, in the order of `second`'s; trial t of both shares weak subset and seed.
        second: the other setting's.
        first_replicates: float64 [B, n], each trial's value on resampled patients.
        second_replicates: the other setting's, on the same resampled patients.
        patients: how many the difference rests on.
        level: coverage in (0, 1).

    Raises:
        ValueError: the settings have different numbers of trials.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} trials cannot be paired")
    values = [a - b for a, b in zip(first, second, strict=True)]
    replicates = first_replicates - second_replicates
    both = combined_interval(values, replicates, patients, level, cochran_cox_t)
    alone = percentile_interval(both.interval.mean, replicates.mean(axis=1), patients, level)
    return Difference(t_interval(values, level), alone, both, p_value(both, cochran_cox_t))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction, in the given order; NaN stays NaN and counts as a test that was planned."""
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    out, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        out[i] = highest
    return out


def power(
    difference: float, trial_variance: float, patient_variance: float, trials: int, patient_df: float, level: float, interaction: float = 0.0
) -> float:
    """The chance that the combined test finds a true difference: over both variances' own distributions (chi-squared), as the test estimates them.

    Args:
        difference: the true one.
        trial_variance: between trials, of one trial's difference.
        patient_variance: of the difference when patients are drawn anew, as far as the trials share it.
        trials: n, at least 2.
        patient_df: degrees of freedom of the patients' variance.
        level: 1 - the test's significance level.
        interaction: the part of trial_variance that comes of a trial's own errors on these patients.
    """
    deviation = math.sqrt(trial_variance / trials + patient_variance)
    if deviation == 0:
        return 1.0 if difference else 1 - level
    t1, t2 = (float(student.ppf(0.5 + level / 2, df)) for df in (trials - 1, patient_df))
    v1 = trial_variance / trials * chi2.ppf(_MIDDLES, trials - 1)[:, None] / (trials - 1)
    v2 = patient_variance * chi2.ppf(_MIDDLES[::4], patient_df)[None, :] / patient_df
    half = (v1 * t1 + v2 * t2) / np.sqrt(v1 + v2)  # Cochran and Cox's interval, no less than that of patients alone
    half = np.maximum(half, t2 * np.sqrt(v2 + interaction / trials))
    return float(np.mean(norm.sf((half - difference) / deviation) + norm.sf((half + difference) / deviation)))


def trials_needed(both: Combined, level: float, wanted: float = 0.8) -> int | None:
    """The smallest number of trials, on these patients, with which a true difference of the observed size is found with probability
    `wanted`; None when no number up to 1000 does, as the patients' shared variance stays."""
    mean, n = both.interval.mean, both.interval.n
    if both.interval.reason or not mean:
        return None

    def enough(trials: int) -> bool:
        return power(mean, both.trial_variance * n, both.patient_variance, trials, both.dfs[1], level, both.interaction) >= wanted

    return next((trials for trials in _steps(2, _MOST) if enough(trials)), None)


def patients_needed(both: Combined, patients: int, level: float, wanted: float = 0.8) -> int | None:
    """The same for patients of the test set, with these trials, when what comes of patients, in each trial alone too, falls as 1 / P: not below
    the present number; None when not even 1000 times as many do."""
    mean, n = both.interval.mean, both.interval.n
    if both.interval.reason or not mean:
        return None

    own = max(0.0, both.trial_variance * n - both.interaction)  # of a trial, on however many patients

    def enough(number: int) -> bool:
        more = number / patients
        less = both.interaction / more
        return power(mean, own + less, both.patient_variance / more, n, both.dfs[1] * more, level, less) >= wanted

    return next((number for number in _steps(patients, _MOST * patients) if enough(number)), None)


def _steps(first: int, last: int) -> Iterator[int]:
    """Numbers upward, each or 2 % apart: power need not grow with the patients where 2 trials alone are left to vary."""
    while first <= last:
        yield first
        first = max(first + 1, round(1.02 * first))
