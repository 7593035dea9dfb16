"""Differences between two settings on the same test images: intervals, p-values, power and the numbers it needs."""

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

_SEARCH_LIMIT = 1000  # trials, or times the present patients; nobody would add more
# the middles of equally likely classes, at which the distributions of the two variances are evaluated
_TRIAL_PROBABILITIES = (np.arange(200) + 0.5) / 200
_PATIENT_PROBABILITIES = (np.arange(50) + 0.5) / 50


@dataclass(frozen=True)
class Difference:
    """The mean of first - second, paired by trial and by patient, with its three intervals and the p-value of `both`.

    Args:
        trials: interval over trials.
        patients: interval over patients, given the trained networks.
        both: interval over trials and patients, with its variances.
        p_value: two-sided, in [1e-12, 1]; NaN where `both` has no interval.
    """

    trials: Interval
    patients: Interval
    both: Combined
    p_value: float


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    first_replicates: Floats,
    second_replicates: Floats,
    patients: float,
    level: float,
) -> Difference:
    """Compute the difference of two settings' means with its intervals.

    Interval and p-value over trials and patients use Cochran and Cox's quantile: where there is no difference, at most
    a share of 1 - level of the studies finds one (benchmarks/coverage.py).

    Args:
        first: one value per trial; trial t of both settings shares weak subset and seed.
        second: the same for the second setting, in the same order of trials.
        first_replicates: float64 [B, n], each trial's value on resampled patients.
        second_replicates: the same for the second setting, on the same resampled patients.
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
    over_patients = percentile_interval(both.interval.mean, replicates.mean(axis=1), patients, level)
    return Difference(t_interval(values, level), over_patients, both, p_value(both, cochran_cox_t))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's (1979) step-down method.

    Args:
        p_values: in [0, 1]; a NaN stays NaN, but counts as a planned test.

    Returns:
        The corrected p-values in [0, 1], in the given order.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    out, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        out[i] = highest
    return out


def power(
    difference: float,
    trial_variance: float,
    patient_variance: float,
    trials: int,
    patient_df: float,
    level: float,
    interaction: float = 0.0,
) -> float:
    """The probability that the combined test finds a true difference.

    The test estimates both variances, so the probability is averaged over their scaled chi-squared distributions.

    Args:
        difference: the true one.
        trial_variance: variance of one trial's difference between trials.
        patient_variance: variance of the difference over new patients, as far as the trials share it.
        trials: n, at least 2.
        patient_df: degrees of freedom of patient_variance.
        level: 1 - the test's significance level.
        interaction: the part of trial_variance that comes from each trial's own errors on these patients.

    Returns:
        In [0, 1]; without any variance 1, or 1 - level for a difference of 0.
    """
    deviation = math.sqrt(trial_variance / trials + patient_variance)
    if deviation == 0:
        return 1.0 if difference else 1 - level
    t1, t2 = (float(student.ppf(0.5 + level / 2, df)) for df in (trials - 1, patient_df))
    v1 = trial_variance / trials * chi2.ppf(_TRIAL_PROBABILITIES, trials - 1)[:, None] / (trials - 1)
    v2 = patient_variance * chi2.ppf(_PATIENT_PROBABILITIES, patient_df)[None, :] / patient_df
    half = (v1 * t1 + v2 * t2) / np.sqrt(v1 + v2)  # as Combined.half_width with cochran_cox_t, [200, 50]
    half = np.maximum(half, t2 * np.sqrt(v2 + interaction / trials))
    return float(np.mean(norm.sf((half - difference) / deviation) + norm.sf((half + difference) / deviation)))


def trials_needed(both: Combined, level: float, wanted: float = 0.8) -> int | None:
    """The smallest number of trials, on these patients, that finds a true difference of this size with power `wanted`.

    Args:
        both: the observed difference and its variances.
        level: 1 - the test's significance level.
        wanted: power, in (0, 1).

    Returns:
        At least 2. None where no number up to 1000 is enough, since the variance over patients stays, or where there
        is no interval or no difference.
    """
    mean, n = both.interval.mean, both.interval.n
    if both.interval.reason or not mean:
        return None

    variance = both.trial_variance * n
    for trials in _growing_numbers(2, _SEARCH_LIMIT):
        if power(mean, variance, both.patient_variance, trials, both.dfs[1], level, both.interaction) >= wanted:
            return trials
    return None


def patients_needed(both: Combined, patients: int, level: float, wanted: float = 0.8) -> int | None:
    """The smallest test set, with these trials, that finds a true difference of this size with power `wanted`.

    All variance that comes from patients, shared or of one trial, falls as 1 / P.

    Args:
        both: the observed difference and its variances.
        patients: P, patients of the test set.
        level: 1 - the test's significance level.
        wanted: power, in (0, 1).

    Returns:
        A number of patients, at least P. None where not even 1000 P are enough, or where there is no interval or no
        difference.
    """
    mean, n = both.interval.mean, both.interval.n
    if both.interval.reason or not mean:
        return None

    without_patients = max(0.0, both.trial_variance * n - both.interaction)  # variance of a trial on endless patients
    for number in _growing_numbers(patients, _SEARCH_LIMIT * patients):
        factor = number / patients
        interaction = both.interaction / factor
        variance, patient_variance = without_patients + interaction, both.patient_variance / factor
        if power(mean, variance, patient_variance, n, both.dfs[1] * factor, level, interaction) >= wanted:
            return number
    return None


def _growing_numbers(first: int, last: int) -> Iterator[int]:
    """Whole numbers from first to last, 1 or 2 % apart.

    They are tried one by one, since power need not grow with the patients: with 2 trials it falls again once only the
    trials are left to vary.
    """
    number = first
    while number <= last:
        yield number
        number = max(number + 1, round(1.02 * number))
