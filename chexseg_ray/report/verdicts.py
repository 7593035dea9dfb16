"""Numbers in words: what the contrasts found, what was chosen, what each interval is conditional on."""

import math
from collections.abc import Mapping, Sequence

from chexseg_ray.choice import Chosen
from chexseg_ray.report.contrasts import ContrastResult
from chexseg_ray.report.paper_tables import Cell, Links, Table
from chexseg_ray.report.readers import READER, Comparison
from chexseg_ray.report.results import FEW_PATIENTS, SettingResult
from chexseg_ray.report.tables import ends, number


def findings(contrasts: Sequence[ContrastResult], comparison: Comparison, chosen: Mapping[str, Chosen], level: float) -> list[str]:
    """The report's first sentences."""
    out = []
    for own in contrasts:
        if own.difference is None or math.isnan(own.difference.both.interval.mean):
            continue
        verdict = _verdict(own, level)
        out.append(f"{own.label()}: mIoU differs by {_signed(own)} ({ends(own.difference.both.interval)}); {verdict}")
    if chosen:
        best = next(iter(chosen.values()))
        out.append(f"Best by validation: {best.point.label} ({best.kind}).")
    if not math.isnan(comparison.gap_closed.mean):
        out.append(gap_words(comparison, level))
    return out


def _signed(own: ContrastResult) -> str:
    """The difference with its sign, and * where few patients carry it."""
    mean = own.difference.both.interval.mean if own.difference else math.nan
    return "–" if math.isnan(mean) else f"{mean:+.3f}{'*' if own.few else ''}"


def _verdict(own: ContrastResult, level: float) -> str:
    if math.isnan(own.holm_p):
        return f"not tested ({own.reason})"
    found = own.holm_p < 1 - level
    return f"{'significant' if found else 'not significant'}, Holm's p {'' if own.holm_p < 1e-4 else '= '}{p_words(own.holm_p)}"


def p_words(p: float) -> str:
    """A p-value for people."""
    return "–" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def gap_words(comparison: Comparison, level: float) -> str:
    """How much of the gap to the radiologists semi-supervision closes."""
    gap = comparison.gap_closed
    if math.isnan(gap.mean):
        there = any(rival.name == READER for rival in comparison.rivals)
        return f"Gap to the radiologists: not said ({gap.reason})." if there else ""
    words = f"{_percent(level)} interval over patients {100 * gap.low:.0f} to {100 * gap.high:.0f} %"
    interval = f" ({gap.reason or words}{'; few patients' if gap.n < FEW_PATIENTS else ''})"
    return f"Semi-supervision closes {100 * gap.mean:.0f} %{interval} of the best weakly supervised setting's mIoU gap to the radiologists."


def _percent(level: float) -> str:
    return f"{100 * level:g} %"


def contrast_table(contrasts: Sequence[ContrastResult], links: Links, patients: int) -> list[Table]:
    """Each contrast's difference, intervals and p-values, and what would separate the two settings with a power of 80 %."""
    rows = []
    for own in contrasts:
        names = own.values()
        sides = [Cell(name, link=links[point]) for name, point in zip(names, (own.first, own.second), strict=True)]
        if own.difference is None:
            rows.append((Cell(own.shared()), *sides, Cell(str(own.trials)), Cell("–", own.reason), *[Cell("")] * 6))
            continue
        d = own.difference
        needed = [_needed(own, own.trials_needed, "trials", 0), _needed(own, own.patients_needed, "patients", patients)]
        texts = [ends(d.trials), ends(d.patients), p_words(d.p_value), p_words(own.holm_p), *needed]
        both = Cell(_signed(own), ends(d.both.interval), links[own.first])
        rows.append((Cell(own.shared()), *sides, Cell(str(own.trials)), both, *map(Cell, texts)))
    names_ = ("of", "first", "second", "trials", "first - second", "over trials", "over patients", "p", "Holm's p")
    needs = ("trials for a power of 80 %", "patients for a power of 80 %")
    text = (
        "Differences in pooled mean IoU that the config asked for beforehand, paired; below each its interval over trials and patients. "
        f"* carried by fewer than {FEW_PATIENTS} patients."
    )
    return [Table("contrasts", "Contrasts", text, (*names_, *needs), 3, tuple(rows))] if rows else []


def _needed(own: ContrastResult, number: int | None, word: str, present: int) -> str:
    if own.reason:
        return own.reason
    return f"no number of {word}" if number is None else f"{'≤ ' if number == present else ''}{number:,}"


def chosen_rows(chosen: Mapping[str, Chosen], settings: Sequence[SettingResult], links: Links) -> list[tuple[str, list[str]]]:
    """Anchor, and kind, model, validation mIoU of its setting, the setting's test mIoU, record."""
    by_setting = {result.setting: result for result in settings}
    rows = []
    for own in chosen.values():
        result = by_setting[own.setting]
        test = f"{number(result.mean['pooled'].mean)} ({ends(result.mean['pooled'].shown)})" if result.points else "not evaluated"
        cells = [own.kind, own.point.label, f"{own.score:.3f} over {own.trials} trial{'s' if own.trials > 1 else ''}", test, own.segmentation.address]
        rows.append((links[own.setting], cells))
    return rows


def interval_words(level: float, overlaps: Sequence[str]) -> list[tuple[str, str]]:
    """Each interval's name, how it is made and what it is conditional on."""
    shared = "the expert masks (with num_expert: those that each trial draws from) and what the trials share (classifier, IRNet, encoders)"
    weak = f" {'; '.join(overlaps).capitalize()}: what they share, they do not vary in." if overlaps else ""
    return [
        ("over trials", f"{_percent(level)} Student t, given this test set, {shared}. Cut to [0, 1].{weak}"),
        (
            "over patients",
            f"{_percent(level)} percentile bootstrap, all images of a patient together, tails widened for few patients; given the networks.",
        ),
        (
            "over both",
            f"{_percent(level)}: s²/n of the trials plus the part of the bootstrap's variance that they share, Satterthwaite's t, and no less than "
            f"over patients alone; given {shared}. Cut to [0, 1].",
        ),
        (
            "contrasts",
            "differences paired by trial and by patient; interval and p-value with Cochran and Cox's t, which is wider than Satterthwaite's; "
            "only the contrasts that the config names beforehand are tested, and Holm corrects for their number. Needed numbers are for a power "
            "of 80 % if the true difference is the observed one, before Holm's correction.",
        ),
    ]
