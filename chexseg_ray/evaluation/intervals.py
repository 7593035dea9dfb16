"""Confidence intervals. Each says what it is conditional on; undefined is NaN with a reason, never 0.

Three sources of an interval, by what would be drawn anew in a repetition of the study: the trials alone (Student's t), the test set's
patients alone (percentile bootstrap), or both (variances added, a t quantile for the sum).
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
    """A mean, its interval and n; when the interval is undefined, low and high are NaN and `reason` says why.

    n is what it rests on: trials, or for the patient bootstrap the patients that show the pathology (effective_patients() of a mean)."""

    mean: float
    low: float
    high: float
    n: int
    reason: str


def undefined(mean: float, n: int, reason: str) -> Interval:
    """A mean without an interval, and why."""
    return Interval(mean, math.nan, math.nan, n, reason)


def spread(values: Sequence[float]) -> tuple[list[float], str]:
    """The defined values, and why they have no spread between trials; empty when they have one."""
    defined = [v for v in values if not math.isnan(v)]
    if len(defined) < 2:
        lacking = f"defined in {len(defined)} of {len(values)} trials" if defined else "undefined"
        return defined, lacking if len(values) > len(defined) else f"{len(defined)} trial{'s' if len(defined) != 1 else ''}"
    return defined, "identical trials" if len(set(defined)) == 1 else ""


def t_interval(values: Sequence[float], level: float) -> Interval:
    """Student's t interval of a mean over trials; conditional on the test set and on everything that the trials share.

    Args:
        values: one a trial; NaN trials are left out.
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
    """Percentile interval of a patient bootstrap; conditional on the trained networks.

    The tails are those of the normal quantile enlarged to Student's t and by n / (n - 1) (Hesterberg 2015, "expanded percentile"), as a
    bootstrap of few patients is too narrow.

    Args:
        mean: the estimate on the test set itself.
        replicates: float64 [B] of the same estimate on resampled patients; NaN where it is undefined.
        patients: how many the estimate rests on: those that show the pathology, or effective_patients() of a mean.
        level: coverage in (0, 1).
    """
    defined = replicates[~np.isnan(replicates)]
    if math.isnan(mean) or not len(defined):
        return undefined(mean, int(patients), "undefined")
    if patients < 2:
        return undefined(mean, int(patients), f"{int(patients)} patient{'s' if int(patients) != 1 else ''}")
    tail = expanded_tail(level, patients)
    low, high = np.quantile(defined, [tail, 1 - tail])
    if low == high:
        return undefined(mean, int(patients), "identical patients")
    return Interval(mean, float(low), float(high), int(patients), "")


@cache
def expanded_tail(level: float, n: float) -> float:
    """The share of replicates below an expanded percentile interval: Phi(-sqrt(n / (n - 1)) t), below (1 - level) / 2."""
    from scipy.stats import norm

    return float(norm.cdf(math.sqrt(n / (n - 1)) * student.ppf(0.5 - level / 2, n - 1)))


@dataclass(frozen=True)
class Combined:
    """A mean over trials with both variances of it, NaN where they are undefined.

    trial_variance is s^2 / n of the trials; patient_variance what patients drawn anew add to it, which all trials share; interaction the part of
    one trial's variance that is its own on those patients, and which s^2 holds already; dfs are the degrees of freedom of the first two."""

    interval: Interval
    trial_variance: float
    patient_variance: float
    interaction: float
    dfs: tuple[float, float]

    def half_width(self, level: float, quantile: "Quantile") -> float:
        """Of the interval of this level: no less than that of patients alone, given the networks, where few trials happen to agree."""
        variances = self.trial_variance, self.patient_variance
        given = math.sqrt(self.patient_variance + self.interaction / self.interval.n)
        return max(quantile(level, variances, self.dfs) * math.sqrt(sum(variances)), float(student.ppf(0.5 + level / 2, self.dfs[1])) * given)


Quantile = Callable[[float, Sequence[float], Sequence[float]], float]


def satterthwaite_t(level: float, variances: Sequence[float], dfs: Sequence[float]) -> float:
    """Student's t quantile of a two-sided level with Satterthwaite's (1946) degrees of freedom for a sum of variance estimates:
    (sum v)^2 / sum(v^2 / df). Not all variances may be 0."""
    df = sum(variances) ** 2 / sum(v * v / df for v, df in zip(variances, dfs, strict=True))
    return float(student.ppf(0.5 + level / 2, df))


def cochran_cox_t(level: float, variances: Sequence[float], dfs: Sequence[float]) -> float:
    """The quantiles of each variance's own degrees of freedom, weighted by the variances (Cochran and Cox 1950): never too narrow, where
    Satterthwaite's covers 92 % when 3 trials vary more than the patients."""
    own = [float(student.ppf(0.5 + level / 2, df)) for df in dfs]
    return sum(v * t for v, t in zip(variances, own, strict=True)) / sum(variances)


def shared_variance(replicates: Floats) -> tuple[float, float]:
    """The variance that all trials share when patients are drawn anew, and the one of a trial alone: their mean covariance, and mean variance
    less that. NaN with fewer than two replicates that all define, or two trials.

    Two networks err on different patients. That part of the bootstrap's variance is in the trials' s^2 as well, and would be counted
    twice; in a difference of two settings, where what makes a patient hard cancels out, it is most of it (benchmarks/coverage.py).

    Args:
        replicates: float64 [B, n], each trial's estimate on the same resampled patients.
    """
    defined = replicates[~np.isnan(replicates).any(axis=1)]
    n = replicates.shape[1]
    if len(defined) < 2 or n < 2:
        return math.nan, math.nan
    own, of_mean = float(defined.var(axis=0, ddof=1).mean()), float(defined.mean(axis=1).var(ddof=1))
    shared = min(own, max(0.0, (n * of_mean - own) / (n - 1)))
    return shared, own - shared


def combined_interval(values: Sequence[float], replicates: Floats, patients: float, level: float, quantile: Quantile = satterthwaite_t) -> Combined:
    """Trials and patients drawn anew: s^2 / n + the variance of patients that the trials share, and a t quantile for the sum; where the trials
    happen to agree, no less than patients alone.

    Conditional on what the trials share (expert masks, classifier, IRNet, encoders). The percentile bootstrap over trials and patients
    draws n trials from n and so sees (n - 1) / n of their variance, with 3 trials far too little (benchmarks/coverage.py).

    Args:
        values: one a trial; NaN trials are left out.
        replicates: float64 [B, n], each trial's estimate on the same resampled patients.
        patients: how many the estimate rests on, one less is the degrees of freedom.
        level: coverage in (0, 1).
        quantile: of the sum of variances.
    """
    defined, reason = spread(values)
    n = len(defined)
    mean = float(np.mean(defined)) if n else math.nan
    patient_variance, interaction = shared_variance(replicates[:, ~np.isnan(np.array(values, dtype=float))])
    trial_variance = float(np.var(defined, ddof=1)) / n if n > 1 else math.nan
    dfs = n - 1, patients - 1
    if not reason and patients < 2:
        reason = f"{int(patients)} patient{'s' if int(patients) != 1 else ''}"
    if not reason and math.isnan(patient_variance):
        reason = "undefined"
    without = Combined(undefined(mean, n, reason), trial_variance, patient_variance, interaction, dfs)
    if reason:
        return without
    half = without.half_width(level, quantile)
    return replace(without, interval=Interval(mean, mean - half, mean + half, n, ""))


def p_value(combined: Combined, quantile: Quantile) -> float:
    """Of a mean of 0, two-sided: 1 - the level whose interval ends at 0. NaN where there is no interval; not below 1e-12."""
    if combined.interval.reason:
        return math.nan

    def beyond(level: float) -> float:
        return combined.half_width(level, quantile) - abs(combined.interval.mean)

    return 1e-12 if beyond(1 - 1e-12) < 0 else 1 - float(brentq(beyond, 0.0, 1 - 1e-12, xtol=1e-14))


def hierarchical_interval(mean: float, replicates: Floats, level: float, rng: np.random.Generator) -> Interval:
    """Percentile bootstrap over trials and patients. Shown beside the combined interval by benchmarks/coverage.py; too narrow for few trials.

    Args:
        mean: over the trials, on the test set itself.
        replicates: float64 [B, n], each trial's estimate on resampled patients.
        level: coverage in (0, 1).
        rng: draws the trials of each replicate.
    """
    count, n = replicates.shape
    if n < 2:
        return undefined(mean, n, f"{n} trial{'s' if n != 1 else ''}")
    drawn = np.take_along_axis(replicates, rng.integers(n, size=(count, n)), axis=1).mean(axis=1)
    low, high = np.nanquantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(mean, float(low), float(high), n, "")
