"""The differences that the config asks for beforehand: only these get p-values, corrected for their number."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from chexseg_ray.config.axes import AXES, SweepPoint, value_words
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.config.sweep import ContrastConfig
from chexseg_ray.evaluation.contrasts import Difference, holm, paired_difference, patients_needed, trials_needed
from chexseg_ray.report.results import FEW_PATIENTS, Floats, SettingResult, TestSet
from chexseg_ray.study.points import every_value


@dataclass(frozen=True)
class ContrastResult:
    """The difference first - second in pooled mean IoU, over the trials that both settings have.

    Args:
        first: a setting.
        second: a setting that differs from it on one axis.
        trials: how many built trials both have.
        difference: with its intervals and p-value; None where not all planned trials are built.
        holm_p: the p-value after Holm's correction; NaN where there is none.
        trials_needed: for a power of 80 %; None where no number suffices or none can be computed.
        patients_needed: likewise.
        reason: why there is no difference or no p-value; else empty.
    """

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
        """Whether fewer than FEW_PATIENTS carry the difference."""
        return self.difference is not None and self.difference.patients.n < FEW_PATIENTS

    @property
    def axis(self) -> str:
        """The name of the axis on which the settings differ."""
        differing = [row.name for row in AXES if getattr(self.first, row.name) != getattr(self.second, row.name)]
        return str(next(name for name in differing if not self._follows_p(name)))

    def _follows_p(self, name: str) -> bool:
        """Whether an axis differs because p does: p = 1 has neither method nor weak set."""
        row = next(row for row in AXES if row.name == name)
        return self.first.p != self.second.p and row.without_pseudo_masks is not ...

    def values(self) -> list[str]:
        """The two settings' values on that axis, as text."""
        return [value_words(self.axis, point) for point in (self.first, self.second)]

    def shared(self) -> str:
        """What both settings have in common, as text; method and weak set are those of the one with p < 1."""
        point = self.first if self.first.p < 1 else self.second
        texts = []
        for row in AXES:
            is_paper_network = point.has_paper_network and row.heading == "network"
            value = getattr(point, row.name)
            if row.name != self.axis and not is_paper_network and value is not None and row.label(value):
                texts.append(row.words(value))
        return ", ".join(texts)

    def label(self) -> str:
        """The contrast as one line of text."""
        return f"{' against '.join(self.values())} ({self.shared()})"


def contrast_results(
    config: StudyConfig, settings: Sequence[SettingResult], test: TestSet | None
) -> tuple[list[ContrastResult], list[str]]:
    """Compute every contrast of the config.

    Args:
        config: of the study.
        settings: all settings.
        test: the test set; None where nothing is built.

    Returns:
        The contrasts in the config's order, two settings compared once; and as text those of the config for which the
        study has no settings.
    """
    known = {result.setting: result for result in settings}
    pairs: dict[frozenset[SweepPoint], tuple[SweepPoint, SweepPoint]] = {}
    lacking = []
    for asked in config.report.contrasts:
        asked_pairs = list(_pairs(asked, config, known))
        for pair in asked_pairs:
            pairs.setdefault(frozenset(pair), pair)  # the same two in the other order are one test
        if not asked_pairs:
            lacking.append(", ".join(f"{name}: {_as_text(value)}" for name, value in asked if value is not None))
    results = [_contrast(known[a], known[b], test, config.report.interval_level) for a, b in pairs.values()]
    corrected = holm([result.difference.p_value if result.difference else math.nan for result in results])
    return [replace(result, holm_p=p) for result, p in zip(results, corrected, strict=True)], lacking


def _by_pathology(result: SettingResult, trials: Sequence[int], test: TestSet) -> Floats:
    """The bootstrap replicates of the mean over some trials, float64 [B, K]."""
    replicates = [
        point.sums["pooled"].replicates(test.weights) for point in result.points if point.point.trial in trials
    ]
    mean: Floats = np.mean(replicates, axis=0)
    return mean


def _as_text(value: object) -> str:
    return " against ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _pairs(
    asked: ContrastConfig, config: StudyConfig, known: Mapping[SweepPoint, SettingResult]
) -> Iterator[tuple[SweepPoint, SweepPoint]]:
    """The pairs of the study's settings that one entry of the config asks for, at every value of the axes it omits."""
    values: dict[str, Sequence[Any]] = {}
    for row in AXES:
        if row.name != asked.axis:
            value = getattr(asked, row.name)
            values[row.name] = every_value(config, row) if value is None else (value,)
    for combination in product(*values.values()):
        fixed = dict(zip(values, combination, strict=True))
        first, second = (SweepPoint(**fixed, **{asked.axis: value}).canonical() for value in getattr(asked, asked.axis))
        if first in known and second in known and first != second:
            yield first, second


def _contrast(first: SettingResult, second: SettingResult, test: TestSet | None, level: float) -> ContrastResult:
    """The difference of two settings, before Holm's correction."""
    values, other_values = first.values("pooled"), second.values("pooled")
    shared, planned = sorted(values.keys() & other_values.keys()), min(first.planned, second.planned)
    blank = ContrastResult(first.setting, second.setting, len(shared), None, math.nan, None, None, "")
    if test is None or len(shared) < planned:
        return replace(blank, reason=f"{len(shared)} of {planned} trials" if shared else "not built")
    carried = test.carried_by("pooled", _by_pathology(first, shared, test) - _by_pathology(second, shared, test))
    difference = paired_difference(
        [values[trial] for trial in shared],
        [other_values[trial] for trial in shared],
        first.replicates_of(shared),
        second.replicates_of(shared),
        carried,
        level,
    )
    trials, patients = trials_needed(difference.both, level), patients_needed(difference.both, test.patients, level)
    reason = difference.both.interval.reason
    return replace(blank, difference=difference, trials_needed=trials, patients_needed=patients, reason=reason)
