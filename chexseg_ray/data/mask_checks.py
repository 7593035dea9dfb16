"""Find masks that were not meant: names spelled otherwise, other units, masks that contradict the labels."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import islice

import numpy as np
import numpy.typing as npt

from chexseg_ray.data.chexpert import COLUMNS
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.errors import InputError, shortened

SIZE = "img_size"  # the key of a polygon entry that is no pathology

_KNOWN = {*PATHOLOGIES, *COLUMNS[COLUMNS.index("No Finding") :]}  # names that a file may have and a study not use
_SAME, _SIMILAR = 0.85, 0.6  # of difflib: nearly the same name, and one that may be meant
_MOST_NAMES = 1000  # that are compared
_LARGE, _FEW_CONTOURS = 400, 3  # pixels of a side; contours that may lie in an image's corner by chance
_FEW_LABELS = 3  # images of a pathology whose masks may all be empty: labels and masks of a few do contradict


def refuse_other_names(
    raw: Mapping[str, Mapping[str, object]],
    names: Mapping[str, Sequence[str]],
    columns: Mapping[str, Sequence[str]],
    source: str,
) -> None:
    """Refuse a polygon file with a name that nearly is a pathology's; it would be taken for one without a mask.

    Names of CheXpert and CheXlocalize, those in `columns`, and names unlike all that are asked for pass. So does a
    similar name in a file that has the pathology's own too, or beside it in one entry.

    Args:
        raw: {cxr_id: entry}.
        names: the names that serve each pathology asked for.
        columns: the study's names for other columns of its files.
        source: the file's name, for the message.

    Raises:
        InputError: gives an id, the name and what may be meant.
    """
    entries = {cxr_id: entry for cxr_id, entry in raw.items() if SIZE in entry}
    served = {name for options in names.values() for name in options}
    mapped = {name for found in columns.values() for name in found}
    keys = {name for entry in entries.values() for name in entry}
    unknown = keys - served - mapped - _KNOWN - {*columns, SIZE}
    for name in islice(sorted(unknown), _MOST_NAMES):
        for pathology, options in names.items():
            closeness = max(_closeness(name, option) for option in options)
            with_name = [cxr_id for cxr_id, entry in entries.items() if name in entry]
            is_beside = any(option in entries[cxr_id] for cxr_id in with_name for option in options)
            is_absent = keys.isdisjoint(options)
            if (closeness >= _SAME and not is_beside) or (closeness >= _SIMILAR and is_absent):
                what = f"has a mask of {name[:80]!r}, which this study does not know: did you mean {pathology!r}?"
                remedy = f"rename it, or give the name for {pathology!r} in data.columns"
                raise InputError(f"{source}: '{shortened(with_name[0], 300)}': {what} ({remedy})")


def similar_name(pathology: str, keys: Iterable[str]) -> str | None:
    """Return the key that is most like a pathology's name, if one is similar.

    Args:
        pathology: the name that is wanted.
        keys: the names of an entry.
    """
    others = [key for key in islice(keys, _MOST_NAMES) if key not in _KNOWN]
    best = max(others, key=lambda key: _closeness(key, pathology), default=None)
    return best if best is not None and _closeness(best, pathology) >= _SIMILAR else None


def _closeness(first: str, second: str) -> float:
    """Return how alike two names are, in [0, 1], without regard to capitals and punctuation."""
    one, other = (re.sub(r"[\W_]+", " ", name[:80]).strip().casefold() for name in (first, second))
    return SequenceMatcher(None, one, other).ratio()


def refuse_other_units(sizes_and_contours: Iterable[tuple[int, int, Sequence[Sequence[Sequence[float]]]]]) -> None:
    """Refuse polygons whose points all look like per cent of the image's sides, as some tools write them.

    Args:
        sizes_and_contours: height and width of an image in pixels, and contours of it in [x, y], of each mask.

    Raises:
        ValueError: there are several contours in large images, all points are within 0 to 100, and some have fractions.
    """
    number, has_fractions = 0, False
    for height, width, contours in sizes_and_contours:
        for contour in contours:
            if min(height, width) < _LARGE or not all(0 <= value <= 100 for point in contour for value in point):
                return
            number += 1
            has_fractions |= any(value != int(value) for point in contour for value in point)
    if number >= _FEW_CONTOURS and has_fractions:
        raise ValueError("all points are within 0 to 100 and have fractions, as per cent do: write them in pixels")


def check_contours(contours: Sequence[Sequence[Sequence[float]]], height: int, width: int) -> None:
    """Refuse contours that are not in pixels of their image.

    Args:
        contours: each a list of [x, y].
        height: of the image, in pixels.
        width: of the image, in pixels.

    Raises:
        ValueError: a contour lies wholly outside the image, or all points are fractions of 1.
    """
    values = [value for contour in contours for point in contour for value in point]
    is_unit = all(0 <= value <= 1 for value in values) and any(value not in (0, 1) for value in values)
    if values and is_unit and min(height, width) > 8:
        raise ValueError("all points are within 0 to 1, as fractions of the image's sides are: write them in pixels")
    for contour in contours:
        if contour:
            (left, right), (top, bottom) = ((min(axis), max(axis)) for axis in zip(*contour, strict=True))
            if right < 0 or bottom < 0 or left > width or top > height:
                place = f"x {left:g} to {right:g}, y {top:g} to {bottom:g}"
                rule = f"a contour ({place}) lies outside the image of {width} x {height} pixels (width x height)"
                raise ValueError(f"{rule}: give points in pixels of img_size, which is [height, width]")


def refuse_absent_masks(
    labels: npt.NDArray[np.float64], shares: npt.NDArray[np.float64], pathologies: Sequence[str], where: str
) -> None:
    """Refuse masks that are all empty for a pathology that several labels say is present.

    Args:
        labels: [N, K], 1 where the pathology is present; other values and NaN otherwise.
        shares: [N, K], the masks' areas as shares of their images.
        pathologies: K names.
        where: names of the mask file and the CSV, for the message.

    Raises:
        InputError: names the pathology and how many labels it has.
    """
    for name, label, share in zip(pathologies, labels.T, shares.T, strict=True):
        number = int((label == 1).sum())
        if number >= _FEW_LABELS and not share.any():
            rule = f"all masks of {name!r} are empty, but {number} of these images have the label 1"
            remedy = "correct the file (is the name spelled as in data.pathologies?), or leave the pathology out"
            raise InputError(f"{where}: {rule}: {remedy}")


def mask_lines(
    split: str, labels: npt.NDArray[np.float64], shares: npt.NDArray[np.float64], pathologies: Sequence[str]
) -> list[str]:
    """Describe the masks of a split, so that wrong ones show before anything is trained.

    Args:
        split: its name.
        labels: [N, K] as in `refuse_absent_masks`.
        shares: [N, K] as in `refuse_absent_masks`.
        pathologies: K names.

    Returns:
        A line with the number of masks and their mean area as a share of the image, for each pathology; and one that
        counts masks that contradict the labels, if there are any.
    """
    areas, against = [], []
    for name, label, share in zip(pathologies, labels.T, shares.T, strict=True):
        there = share > 0
        areas.append(f"{name} {there.sum()} ({_percent(share[there].mean())})" if there.any() else f"{name} none")
        against += list(_contradictions(name, label, there))
    lines = [f"masks of {split} ({len(labels)} images; mean area): {', '.join(areas)}"]
    if against:
        lines.append(f"masks of {split} against the labels: {'; '.join(against)}")
    return lines


def _contradictions(name: str, label: npt.NDArray[np.float64], there: npt.NDArray[np.bool_]) -> Iterator[str]:
    """Yield a text for the images with label 1 and no mask, and one for those with label 0 and a mask."""
    if number := int(((label == 1) & ~there).sum()):
        yield f"{name} has label 1 without a mask in {number}"
    if number := int(((label == 0) & there).sum()):
        yield f"{name} has label 0 with a mask in {number}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:.3f} %"
