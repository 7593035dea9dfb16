"""The differences that the config asks for beforehand: only these get p-values, corrected for their number."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from chexseg_ray.config import ContrastConfig, StudyConfig
from chexseg_ray.evaluation.contrasts import Difference, holm, paired_difference, patients_needed, trials_needed
from chexseg_ray.pipeline import PAPER_NETWORK, SweepPoint
from chexseg_ray.report.results import FEW_PATIENTS, Floats, SettingResult, TestSet

AXES = ("method", "p", "init", "weak_n", "num_expert", "architecture", "encoder")


@dataclass(frozen=True)
class ContrastResult:
    """first - second in pooled mean IoU over the trials that both have. `reason` says why there is no difference, or no p-value; needed
    numbers are None where no number would do, or none can be said."""

    first: SweepPoint
    second: SweepPoint
    trials: int
    difference: Difference | None
    holm_p: float
    trials_needed: int | None
    patients_needed: int | None
    reason: str

    @property
    def few(self) -> bool:
        """Whether fewer than 20 patients carry the difference."""
        return self.difference is not None and self.difference.patients.n < FEW_PATIENTS

    @property
    def axis(self) -> str:
        """The axis that differs."""
        return next(name for name in AXES if getattr(self.first, name) != getattr(self.second, name) and not _follows(name, self))

    def values(self) -> list[str]:
        """Of the first and the second on that axis."""
        return [_named(self.axis, point) for point in (self.first, self.second)]

    def shared(self) -> str:
        """What both have in common: method and weak set are the first's where p = 1 has none."""
        own = self.first if self.first.p < 1 else self.second
        network = () if (own.architecture, own.encoder) == PAPER_NETWORK else ("architecture", "encoder")
        names = ("method", "p", "init", "weak_n", "num_expert", *network)
        return ", ".join(_named(name, own) for name in names if name != self.axis and (name == "p" or getattr(own, name)))

    def label(self) -> str:
        """One line for people."""
        return f"{' against '.join(self.values())} ({self.shared()})"


def _named(axis: str, point: SweepPoint) -> str:
    words = {"p": f"p = {point.p:g}", "weak_n": f"{point.weak_n} weak", "num_expert": f"{point.num_expert or 'all'} experts"}
    return words.get(axis) or str(getattr(point, axis))


def _follows(name: str, own: "ContrastResult") -> bool:
    """p = 1 has neither method nor weak set: these differ because p does."""
    return own.first.p != own.second.p and name in ("method", "weak_n")


def contrast_results(config: StudyConfig, settings: Sequence[SettingResult], test: TestSet | None) -> tuple[list[ContrastResult], list[str]]:
    """Every contrast of the config, in its order, and in words those that the study has no settings for."""
    known = {result.setting: result for result in settings}
    pairs: dict[frozenset[SweepPoint], tuple[SweepPoint, SweepPoint]] = {}
    lacking = []
    for asked in config.report.contrasts:
        own = list(_pairs(asked, config, known))
        for pair in own:
            pairs.setdefault(frozenset(pair), pair)  # the same two the other way round are one test
        lacking += [] if own else [", ".join(f"{name}: {_words(value)}" for name, value in asked if value is not None)]
    results = [_contrast(known[a], known[b], test, config.report.interval_level) for a, b in pairs.values()]
    corrected = holm([result.difference.p_value if result.difference else math.nan for result in results])
    return [replace(result, holm_p=p) for result, p in zip(results, corrected, strict=True)], lacking


def _by_pathology(result: SettingResult, trials: Sequence[int], test: TestSet) -> Floats:
    """Replicates of the mean over some trials: float64 [B, K]."""
    own = [point.sums["pooled"].replicates(test.weights) for point in result.points if point.point.trial in trials]
    mean: Floats = np.mean(own, axis=0)
    return mean


def _words(value: object) -> str:
    return " against ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _pairs(asked: ContrastConfig, config: StudyConfig, known: Mapping[SweepPoint, SettingResult]) -> Iterator[tuple[SweepPoint, SweepPoint]]:
    """The settings of the study that differ as asked, at every combination of the axes that are left out."""
    every = {"architecture": config.segmentation.architectures, "encoder": config.segmentation.encoders}
    values = {name: [value] if (value := getattr(asked, name)) is not None else every.get(name) or config.sweep.every(name) for name in AXES}
    del values[asked.axis]
    for combination in product(*values.values()):
        fixed = dict(zip(values, combination, strict=True))
        first, second = (SweepPoint(**fixed, **{asked.axis: value}, trial=-1).canonical() for value in getattr(asked, asked.axis))
        if first in known and second in known and first != second:
            yield first, second


def _contrast(first: SettingResult, second: SettingResult, test: TestSet | None, level: float) -> ContrastResult:
    values = [own.values("pooled") for own in (first, second)]
    shared, planned = sorted(values[0].keys() & values[1].keys()), min(first.planned, second.planned)
    blank = ContrastResult(first.setting, second.setting, len(shared), None, math.nan, None, None, "")
    if test is None or len(shared) < planned:
        return replace(blank, reason=f"{len(shared)} of {planned} trials" if shared else "not built")
    a, b = ([own[trial] for trial in shared] for own in values)
    drawn, other = (own.replicates_of(shared) for own in (first, second))
    carried = test.carried_by("pooled", np.subtract(*(_by_pathology(own, shared, test) for own in (first, second))))
    difference = paired_difference(a, b, drawn, other, carried, level)
    trials, patients = trials_needed(difference.both, level), patients_needed(difference.both, test.patients, level)
    reason = difference.both.interval.reason
    return replace(blank, difference=difference, trials_needed=trials, patients_needed=patients, reason=reason)
