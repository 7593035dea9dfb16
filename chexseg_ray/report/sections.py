"""Parts of the page: the table of contrasts, the chosen models, the explanation of the intervals."""

import math
from collections.abc import Mapping, Sequence

from chexseg_ray.report.cells import Cell, Links, Table
from chexseg_ray.report.contrasts import ContrastResult
from chexseg_ray.report.findings import signed
from chexseg_ray.report.results import FEW_PATIENTS, SettingResult
from chexseg_ray.report.text import ends, number, p_text, percent
from chexseg_ray.study.choice import Chosen

_HEADER = (
    "of",
    "first",
    "second",
    "trials",
    "first - second",
    "over trials",
    "over patients",
    "p",
    "Holm's p",
    "trials for a power of 80 %",
    "patients for a power of 80 %",
)


def contrast_table(contrasts: Sequence[ContrastResult], links: Links, patients: int) -> list[Table]:
    """Make the table of contrasts: difference, intervals, p-values, and what a power of 80 % would take.

    Args:
        contrasts: the contrasts that the config asks for.
        links: the anchors of the settings.
        patients: number of patients of the test set.

    Returns:
        A list of one table, with a row per contrast; an empty list if there is no contrast.
    """
    rows = tuple(_contrast_row(contrast, links, patients) for contrast in contrasts)
    text = (
        "Differences in pooled mean IoU that the config asked for beforehand, paired; below each its interval over "
        f"trials and patients. * carried by fewer than {FEW_PATIENTS} patients."
    )
    return [Table("contrasts", "Contrasts", text, _HEADER, 3, rows)] if rows else []


def _contrast_row(contrast: ContrastResult, links: Links, patients: int) -> tuple[Cell, ...]:
    names, points = contrast.values(), (contrast.first, contrast.second)
    sides = [Cell(name, link=links[point]) for name, point in zip(names, points, strict=True)]
    labels = (Cell(contrast.shared()), *sides, Cell(str(contrast.trials)))
    difference = contrast.difference
    if difference is None:
        return (*labels, Cell("–", contrast.reason), *[Cell("")] * (len(_HEADER) - len(labels) - 1))
    cells = (
        Cell(ends(difference.trials)),
        Cell(ends(difference.patients)),
        _p_cell(difference.p_value),
        _p_cell(contrast.holm_p),
        Cell(_needed(contrast, contrast.trials_needed, "trials", 0)),
        Cell(_needed(contrast, contrast.patients_needed, "patients", patients)),
    )
    return (*labels, Cell(signed(contrast), ends(difference.both.interval), links[contrast.first]), *cells)


def _p_cell(p: float) -> Cell:
    return Cell(p_text(p), value="" if math.isnan(p) else repr(p))


def _needed(contrast: ContrastResult, needed: int | None, word: str, present: int) -> str:
    """Return how many trials or patients would show the difference; `present` of them are in the study."""
    if contrast.reason:
        return contrast.reason
    if needed is None:
        return f"no number of {word}"
    return f"≤ {needed:,}" if needed == present else f"{needed:,}"


def chosen_rows(
    chosen: Mapping[str, Chosen], settings: Sequence[SettingResult], links: Links
) -> list[tuple[str, list[str]]]:
    """Make a row for each chosen model.

    Args:
        chosen: the best setting of each kind, the best first.
        settings: all settings.
        links: the anchors of the settings.

    Returns:
        For each model its anchor, and its cells: kind, model, validation mIoU and test mIoU of its setting, and the
        address of its weights.
    """
    by_setting = {result.setting: result for result in settings}
    rows = []
    for model in chosen.values():
        mean = by_setting[model.setting].mean["pooled"]
        test = f"{number(mean.mean)} ({ends(mean.shown)})" if by_setting[model.setting].points else "not evaluated"
        validation = f"{model.score:.3f} over {model.trials} trial{'s' if model.trials > 1 else ''}"
        cells = [model.kind, model.point.label, validation, test, model.segmentation.address]
        rows.append((links[model.setting], cells))
    return rows


def interval_texts(level: float, overlaps: Sequence[str]) -> list[tuple[str, str]]:
    """Explain the intervals.

    Args:
        level: coverage, in (0, 1).
        overlaps: sentences on how much the trials' image sets overlap.

    Returns:
        For each interval its name, and a text about how it is made and what it is conditional on.
    """
    shared = "the expert masks (with num_expert: those that each trial draws from) and what the trials share"
    shared += " (classifier, IRNet, encoders)"
    overlap = ""
    if overlaps:
        overlap = (
            f" {'; '.join(overlaps).capitalize()}. The interval does not cover how results vary with shared images."
        )
    return [
        ("over trials", f"{percent(level)} Student t, given this test set, {shared}. Cut to [0, 1].{overlap}"),
        (
            "over patients",
            f"{percent(level)} percentile bootstrap; all images of a patient are drawn together, and the tails are "
            "widened where there are few patients. Given the trained networks.",
        ),
        (
            "over both",
            f"{percent(level)}: variance s²/n of the trials plus the part of the bootstrap's variance that the trials "
            "share, Satterthwaite's t; at least as wide as the interval over patients. "
            f"Given {shared}. Cut to [0, 1].",
        ),
        (
            "contrasts",
            "Differences are paired by trial and by patient. Interval and p-value use Cochran and Cox's t, which is "
            "wider than Satterthwaite's. Only the contrasts that the config names are tested, and Holm's method "
            "corrects for their number. The numbers of trials and patients are for a power of 80 % if the true "
            "difference is the observed one, before Holm's correction.",
        ),
    ]
