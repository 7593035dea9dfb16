"""Confidence intervals; an undefined one is NaN with a reason, never 0.

There are three kinds, by what a repetition of the study would draw again: only the trials (Student's t), only the
patients of the test set (percentile bootstrap), or both (the variances are added; a t quantile for the sum). Each
interval is conditional on what would not be drawn again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import t as student

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; where the interval is undefined, low and high are NaN and `reason` explains it.

    n is the number of trials; in a patient bootstrap the number of patients that show the pathology, or for a mean over
    pathologies effective_patients(), rounded down.
    """

    mean: float
    low: float
    high: float
    n: int
    reason: str


def undefined(mean: float, n: int, reason: str) -> Interval:
    """Make an Interval that has no low and no high.

    Args:
        mean: the mean; it may be NaN.
        n: the number of trials or patients, as in Interval.
        reason: why there is no interval.
    """
    return Interval(mean, math.nan, math.nan, n, reason)


def _number_of(n: int, noun: str) -> str:
    """The number with its noun, such as `1 trial` or `3 trials`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def spread(values: Sequence[float]) -> tuple[list[float], str]:
    """Find out whether values differ between trials.

    Args:
        values: one per trial; NaN where the trial does not define it.

    Returns:
        The values that are not NaN; and why they have no variance, or "" where they have one.
    """
    defined = [v for v in values if not math.isnan(v)]
    if len(defined) == len(values) and len(defined) < 2:
        reason = _number_of(len(defined), "trial")
    elif not defined:
        reason = "undefined"
    elif len(defined) < 2:
        reason = f"defined in {len(defined)} of {len(values)} trials"
    elif len(set(defined)) == 1:
        reason = "identical trials"
    else:
        reason = ""
    return defined, reason


def t_interval(values: Sequence[float], level: float) -> Interval:
    """Student's t interval of a mean over trials, conditional on the test set and on everything that the trials share.

    Args:
        values: one per trial; NaN is left out.
        level: coverage in (0, 1).
    """
    defined, reason = spread(values)
    n = len(defined)
    mean = float(np.mean(defined)) if n else math.nan
    if reason:
        return undefined(mean, n, reason)
    half = float(student.ppf(0.5 + level / 2, n - 1)) * float(np.std(defined, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, "")


def percentile_interval(mean: float, replicates: Floats, patients: float, level: float) -> Interval:
    """Percentile interval of a patient bootstrap, conditional on the trained networks.

    A plain percentile interval of few patients is too narrow. So this one ends further out in the tails, at
    expanded_tail() (Hesterberg 2015, "expanded percentile").

    Args:
        mean: the estimate on the test set itself.
        replicates: float64 [B] of the same estimate on resampled patients; NaN where it is undefined.
        patients: how many show the pathology; for a mean over pathologies effective_patients().
        level: coverage in (0, 1).
    """
    defined = replicates[~np.isnan(replicates)]
    if math.isnan(mean) or not len(defined):
        return undefined(mean, int(patients), "undefined")
    if patients < 2:
        return undefined(mean, int(patients), _number_of(int(patients), "patient"))
    tail = expanded_tail(level, patients)
    low, high = np.quantile(defined, [tail, 1 - tail])
    if low == high:
        return undefined(mean, int(patients), "identical patients")
    return Interval(mean, float(low), float(high), int(patients), "")


@cache
def expanded_tail(level: float, n: float) -> float:
    """The share of replicates below an expanded percentile interval, Phi(-sqrt(n / (n - 1)) t) < (1 - level) / 2.

    Phi is the normal distribution function, t Student's quantile of the two-sided level with n - 1 degrees of freedom.

    Args:
        level: coverage in (0, 1).
        n: number of patients, at least 2.
    """
    from scipy.stats import norm

    return float(norm.cdf(math.sqrt(n / (n - 1)) * student.ppf(0.5 - level / 2, n - 1)))


@dataclass(frozen=True)
class Combined:
    """A mean over n trials with the variances that make its interval; NaN where they are undefined.

    Args:
        interval: the mean and its interval over trials and patients.
        trial_variance: s^2 / n, where s^2 is the variance between trials.
        patient_variance: what new patients add to the mean's variance: the error on patients that all trials share.
        interaction: variance of one trial's error on patients that it does not share. s^2 already contains it.
        dfs: degrees of freedom of trial_variance and patient_variance.
    """

    interval: Interval
    trial_variance: float
    patient_variance: float
    interaction: float
    dfs: tuple[float, float]

    def half_width(self, level: float, quantile: "Quantile") -> float:
        """Half width of the interval at `level`; at least the patients-only half width.

        The lower limit matters where few trials agree by chance.

        Args:
            level: coverage in (0, 1).
            quantile: of the sum of the two variances, as satterthwaite_t or cochran_cox_t.
        """
        variances = self.trial_variance, self.patient_variance
        patients_only = math.sqrt(self.patient_variance + self.interaction / self.interval.n)
        return max(
            quantile(level, variances, self.dfs) * math.sqrt(sum(variances)),
            float(student.ppf(0.5 + level / 2, self.dfs[1])) * patients_only,
        )


Quantile = Callable[[float, Sequence[float], Sequence[float]], float]


def satterthwaite_t(level: float, variances: Sequence[float], dfs: Sequence[float]) -> float:
    """Student's t quantile with Satterthwaite's (1946) degrees of freedom, (sum v)^2 / sum(v^2 / df).

    Args:
        level: two-sided, in (0, 1).
        variances: estimates v >= 0, not all 0.
        dfs: degrees of freedom of each.
    """
    df = sum(variances) ** 2 / sum(v * v / df for v, df in zip(variances, dfs, strict=True))
    return float(student.ppf(0.5 + level / 2, df))


def cochran_cox_t(level: float, variances: Sequence[float], dfs: Sequence[float]) -> float:
    """Average the t quantiles of all degrees of freedom, weighted by the variances (Cochran and Cox 1950).

    Its intervals are never too narrow; Satterthwaite's cover 92 % instead of 95 % when 3 trials vary more than the
    patients.

    Args:
        level: two-sided, in (0, 1).
        variances: estimates v >= 0, not all 0.
        dfs: degrees of freedom of each.
    """
    quantiles = [float(student.ppf(0.5 + level / 2, df)) for df in dfs]
    return sum(v * t for v, t in zip(variances, quantiles, strict=True)) / sum(variances)


def shared_variance(replicates: Floats) -> tuple[float, float]:
    """Split one trial's variance over patients into a part that all trials share and a part of its own.

    Two networks err on different patients. The trials' s^2 contains the variance of these errors too, so adding the
    bootstrap's whole variance would count them twice. In a difference of two settings they are most of the variance,
    as what makes a patient hard for both cancels out (benchmarks/coverage.py).

    Args:
        replicates: float64 [B, n], each trial's estimate on the same resampled patients.

    Returns:
        The trials' mean covariance, at least 0; and their mean variance minus it. NaN for both with fewer than two
        trials, or fewer than two replicates that no trial leaves undefined.
    """
    defined = replicates[~np.isnan(replicates).any(axis=1)]
    n = replicates.shape[1]
    if len(defined) < 2 or n < 2:
        return math.nan, math.nan
    of_trial, of_mean = float(defined.var(axis=0, ddof=1).mean()), float(defined.mean(axis=1).var(ddof=1))
    shared = min(of_trial, max(0.0, (n * of_mean - of_trial) / (n - 1)))
    return shared, of_trial - shared


def combined_interval(
    values: Sequence[float], replicates: Floats, patients: float, level: float, quantile: Quantile = satterthwaite_t
) -> Combined:
    """Interval of a mean when both trials and patients are drawn again, conditional on what the trials share.

    The trials share expert masks, classifier, IRNet and encoders. The variance is s^2 / n plus the variance over
    patients that the trials share (shared_variance); the half width is Combined.half_width(). A percentile bootstrap
    over trials and patients would draw n trials from n and contain only (n - 1) / n of their variance, far too little
    with 3 trials (benchmarks/coverage.py).

    Args:
        values: one per trial; NaN is left out.
        replicates: float64 [B, n], each trial's estimate on the same resampled patients.
        patients: how many the estimate rests on; the degrees of freedom are one less.
        level: coverage in (0, 1).
        quantile: of the sum of the two variances, as satterthwaite_t or cochran_cox_t.
    """
    defined, reason = spread(values)
    n = len(defined)
    mean = float(np.mean(defined)) if n else math.nan
    patient_variance, interaction = shared_variance(replicates[:, ~np.isnan(np.array(values, dtype=float))])
    trial_variance = float(np.var(defined, ddof=1)) / n if n > 1 else math.nan
    dfs = n - 1, patients - 1
    if not reason and patients < 2:
        reason = _number_of(int(patients), "patient")
    if not reason and math.isnan(patient_variance):
        reason = "undefined"
    combined = Combined(undefined(mean, n, reason), trial_variance, patient_variance, interaction, dfs)
    if reason:
        return combined
    half = combined.half_width(level, quantile)
    return replace(combined, interval=Interval(mean, mean - half, mean + half, n, ""))


def p_value(combined: Combined, quantile: Quantile) -> float:
    """Two-sided p-value of the hypothesis that the mean is 0: 1 - the level whose interval ends at 0.

    Args:
        combined: the mean and its variances.
        quantile: as in Combined.half_width.

    Returns:
        In [1e-12, 1]; NaN where there is no interval.
    """
    if combined.interval.reason:
        return math.nan

    def excess(level: float) -> float:
        return combined.half_width(level, quantile) - abs(combined.interval.mean)

    if excess(1 - 1e-12) < 0:
        return 1e-12
    return 1 - float(brentq(excess, 0.0, 1 - 1e-12, xtol=1e-14))


def hierarchical_interval(mean: float, replicates: Floats, level: float, rng: np.random.Generator) -> Interval:
    """Percentile bootstrap over trials and patients, too narrow for few trials.

    Only benchmarks/coverage.py uses it, to compare it with the combined interval.

    Args:
        mean: over the trials, on the test set itself.
        replicates: float64 [B, n], each trial's estimate on resampled patients.
        level: coverage in (0, 1).
        rng: draws the trials of each replicate.
    """
    count, n = replicates.shape
    if n < 2:
        return undefined(mean, n, _number_of(n, "trial"))
    drawn = np.take_along_axis(replicates, rng.integers(n, size=(count, n)), axis=1).mean(axis=1)
    low, high = np.nanquantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(mean, float(low), float(high), n, "")
