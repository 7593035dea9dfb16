"""The report's first sentences: one per question of the config, the choice by validation, the gap to radiologists."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chexseg_ray.report.contrasts import ContrastResult
from chexseg_ray.report.readers import READER, Comparison
from chexseg_ray.report.results import FEW_PATIENTS
from chexseg_ray.report.text import ends, number, p_text, percent
from chexseg_ray.study.choice import Chosen


@dataclass(frozen=True)
class Finding:
    """A sentence, and the lines that it sums up."""

    text: str
    details: tuple[str, ...] = ()


def findings(
    contrasts: Sequence[ContrastResult], comparison: Comparison, chosen: Mapping[str, Chosen], level: float
) -> list[Finding]:
    """Sum up the results in sentences.

    Args:
        contrasts: the contrasts that the config asks for.
        comparison: the comparison of models with radiologists.
        chosen: the best setting of each kind, the best first.
        level: coverage of the intervals; 1 - level is the significance level.

    Returns:
        The sentences in the order of the page: one per question (two values of one axis), however many settings it is
        asked of.
    """
    questions: dict[tuple[str, ...], list[ContrastResult]] = {}
    for contrast in contrasts:
        if contrast.difference is not None and not math.isnan(contrast.difference.both.interval.mean):
            questions.setdefault((contrast.axis, *contrast.values()), []).append(contrast)
    sentences = [_answer(group, level) for group in questions.values()]
    if chosen:
        best = next(iter(chosen.values()))
        sentences.append(Finding(f"Best by validation: {best.point.label} ({best.kind})."))
    if not math.isnan(comparison.gap_closed.mean):
        sentences.append(Finding(gap_text(comparison, level)))
    return sentences


def _answer(group: Sequence[ContrastResult], level: float) -> Finding:
    """Answer one question, asked of one setting or of several."""
    question = " against ".join(group[0].values())
    if len(group) == 1:
        return Finding(f"{question} ({group[0].shared()}): {_verdict(group[0], level)}.")
    higher = [contrast for contrast in group if _is_found(contrast, level) and _mean(contrast) > 0]
    lower = [contrast for contrast in group if _is_found(contrast, level) and _mean(contrast) < 0]
    untested = [contrast for contrast in group if math.isnan(contrast.holm_p)]
    rest = [contrast for contrast in group if contrast not in (*higher, *lower, *untested)]
    parts = []
    for word, contrasts in (("higher", higher), ("lower", lower)):
        if contrasts:
            parts.append(f"{word} mIoU in {len(contrasts)} of {len(group)} settings ({_range(contrasts)})")
    if len(rest) == len(group):
        largest = max(rest, key=lambda contrast: abs(_mean(contrast)))
        example = f"largest: {_difference(largest)}, {largest.shared()}"
        parts.append(f"no difference shown in any of {len(group)} settings ({example})")
    elif rest:
        parts.append(f"no difference shown in {len(rest)}")
    if untested:
        parts.append(
            f"not tested in {len(untested)} of {len(group)} settings ({_range(untested)}; {untested[0].reason})"
        )
    details = tuple(f"{contrast.shared()}: {_verdict(contrast, level)}" for contrast in group)
    return Finding(f"{question}: {'; '.join(parts)}.", details)


def _mean(contrast: ContrastResult) -> float:
    return contrast.difference.both.interval.mean if contrast.difference else math.nan


def _is_found(contrast: ContrastResult, level: float) -> bool:
    """Return whether a difference is shown after the correction for the number of contrasts."""
    return contrast.holm_p < 1 - level


def _range(contrasts: Sequence[ContrastResult]) -> str:
    """Return the smallest and the largest difference as `+0.100 to +0.200`."""
    ordered = sorted(contrasts, key=lambda contrast: abs(_mean(contrast)))
    return " to ".join(dict.fromkeys((signed(ordered[0]), signed(ordered[-1]))))


def _difference(contrast: ContrastResult) -> str:
    """Return `-0.017 (-0.063 to 0.029)`."""
    assert contrast.difference is not None
    return f"{signed(contrast)} ({ends(contrast.difference.both.interval)})"


def _verdict(contrast: ContrastResult, level: float) -> str:
    """Return what one contrast shows."""
    if math.isnan(contrast.holm_p):
        return f"mIoU differs by {_difference(contrast)}, not tested ({contrast.reason})"
    p = p_text(contrast.holm_p)
    relation = p if p.startswith("<") else f"= {p}"
    tested = f"{_difference(contrast)}, Holm's p {relation}"
    if not _is_found(contrast, level):
        return f"no difference in mIoU shown: {tested}"
    return f"mIoU is {'higher' if _mean(contrast) > 0 else 'lower'}: {tested}"


def signed(contrast: ContrastResult) -> str:
    """Return the difference of `contrast` with its sign, and * if few patients carry it; a dash if it is undefined."""
    mean = _mean(contrast)
    if math.isnan(mean):
        return "–"
    return f"{mean:+.3f}*" if contrast.few else f"{mean:+.3f}"


def gap_text(comparison: Comparison, level: float) -> str:
    """Return how much of the gap to the radiologists semi-supervision closes, as a sentence.

    Args:
        comparison: the comparison of models with radiologists.
        level: coverage of the interval.

    Returns:
        The sentence; empty if the study has no radiologists.
    """
    gap = comparison.gap_closed
    if math.isnan(gap.mean):
        present = any(rival.name == READER for rival in comparison.rivals)
        return f"Gap to the radiologists: not given ({gap.reason})." if present else ""
    interval = gap.reason
    if not interval:
        low, high = number(100 * gap.low, 0), number(100 * gap.high, 0)
        interval = f"{percent(level)} interval over patients {low} to {high} %"
    few = "; few patients" if gap.n < FEW_PATIENTS else ""
    closed = f"Semi-supervision closes {100 * gap.mean:.0f} % ({interval}{few})"
    return f"{closed} of the best weakly supervised setting's mIoU gap to the radiologists."
