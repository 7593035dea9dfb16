"""Read and write masks as CheXlocalize stores them: COCO run-length encoding, written bit-identically, and polygons."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from chexseg_ray.data.images import MAX_PIXELS
from chexseg_ray.data.mask_checks import (
    SIZE,
    check_contours,
    refuse_other_names,
    refuse_other_units,
    similar_name,
)
from chexseg_ray.data.pathologies import names_of
from chexseg_ray.errors import InputError, quoted, shortened


@dataclass(frozen=True)
class Rle:
    """A run-length encoded mask.

    Args:
        height: in pixels.
        width: in pixels.
        counts: compressed COCO counts (column-major runs, the first one of zeros).
    """

    height: int
    width: int
    counts: str

    @cached_property
    def area(self) -> int:
        """The number of pixels that are set; cached, since several checks of a study ask for it.

        Raises:
            ValueError: `counts` is not a COCO run-length string.
        """
        return sum(decode_runs(self.counts)[1::2])


def encode_rle(mask: npt.NDArray[np.bool_]) -> str:
    """Encode a mask bool [h, w] as compressed COCO counts.

    The runs go down the columns. From the fourth on, each is written as its difference to the run two before it, in
    base-32 digits, as pycocotools does (rleToString).
    """
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    runs = np.diff(edges).tolist()
    if flat.size and flat[0]:
        runs.insert(0, 0)
    return _encode_runs(runs)


def _encode_runs(runs: Sequence[int]) -> str:
    """Encode run lengths, the first one of zeros."""
    text = bytearray()
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        while True:
            digit = value & 0x1F
            value >>= 5
            done = value == (-1 if digit & 0x10 else 0)
            text.append(48 + (digit if done else digit | 0x20))
            if done:
                break
    return text.decode("ascii")


def decode_runs(counts: str) -> list[int]:
    """Decode compressed COCO counts to run lengths, in pixels, the first one of zeros.

    Raises:
        ValueError: `counts` is not such a string.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError(f"counts hold {letter!r}, which no COCO run-length string does")
        value |= (code & 0x1F) << shift
        shift += 5
        if not code & 0x20:
            if code & 0x10:
                value |= -1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            if runs[-1] < 0:
                raise ValueError("counts hold a run of negative length")
            value = shift = 0
    if shift:
        raise ValueError("counts end in the middle of a number")
    return runs


def decode_rle(rle: Rle) -> npt.NDArray[np.bool_]:
    """Decode a mask.

    Args:
        rle: the mask's run lengths and size.

    Returns:
        bool [height, width].

    Raises:
        ValueError: the size is out of bounds, or the runs do not add up to it; both are checked before allocating.
    """
    if rle.height < 1 or rle.width < 1 or rle.height * rle.width > MAX_PIXELS:
        raise ValueError(f"size {rle.height} x {rle.width} is out of bounds")
    runs = decode_runs(rle.counts)
    if sum(runs) != rle.height * rle.width:
        raise ValueError(f"runs cover {sum(runs)} pixels, size {rle.height} x {rle.width} has {rle.height * rle.width}")
    values = np.zeros(len(runs), dtype=bool)
    values[1::2] = True
    return np.repeat(values, runs).reshape((rle.height, rle.width), order="F")


def rasterise(contours: Sequence[Sequence[Sequence[float]]], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Fill and outline polygons as CheXlocalize does (Pillow, 1-bit).

    Args:
        contours: each a list of [x, y], in pixels of the full-resolution image.
        height: of that image, in pixels.
        width: of that image, in pixels.

    Returns:
        bool [height, width], the union of the polygons.
    """
    image = Image.new("1", (width, height))
    draw = ImageDraw.Draw(image)
    for contour in contours:
        draw.polygon([(float(x), float(y)) for x, y in contour], outline=1, fill=1)
    return np.asarray(image, dtype=bool)


def read_mask_json(
    data: bytes, source: str, pathologies: Sequence[str], columns: Mapping[str, Sequence[str]] | None = None
) -> dict[str, dict[str, Rle]]:
    """Parse a CheXlocalize segmentation file (RLE) or annotation file (polygons, with img_size).

    Args:
        data: the file's bytes.
        source: the file's name, for messages.
        pathologies: the pathologies to read ("Lung Opacity" in the file serves Airspace Opacity).
        columns: another data set's names for pathologies, as in its CSV; the file may use either name.

    Returns:
        {cxr_id: {pathology: Rle}} with every pathology asked for; runs, sizes, names and units are checked.

    Raises:
        InputError: the file breaks a rule, or has a name or points that hardly are meant so (data.mask_checks); the
            message names the id, the pathology and the rule.
    """
    remedy = "give CheXlocalize's segmentation or annotation file"
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raise InputError(f"{source}: no JSON: {remedy}") from None
    if not isinstance(raw, dict) or not all(isinstance(entry, dict) for entry in raw.values()):
        raise InputError(f"{source}: not {{cxr_id: {{pathology: mask}}}}: {remedy}")
    names = {name: (*(columns or {}).get(name, ()), *names_of(name)) for name in pathologies}
    refuse_other_names(raw, names, columns or {}, source)
    masks = {
        cxr_id: {name: _mask(entry, name, names, cxr_id, source) for name in pathologies}
        for cxr_id, entry in raw.items()
    }
    for cxr_id, image_masks in masks.items():
        first = next(iter(image_masks.values()))
        for name, rle in image_masks.items():
            if (rle.height, rle.width) != (first.height, first.width):
                rule = (
                    f"size {rle.height} x {rle.width} is not that of its other masks ({first.height} x {first.width})"
                )
                raise InputError(f"{source}: '{shortened(cxr_id, 300)}', {name}: {rule}: correct the file")
    try:
        refuse_other_units(_drawn(raw, masks, names))
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None
    return masks


def _drawn(
    raw: Mapping[str, Mapping[str, Any]], masks: Mapping[str, Mapping[str, Rle]], names: Mapping[str, Sequence[str]]
) -> Iterator[tuple[int, int, Any]]:
    """Yield height, width and contours of each checked polygon mask."""
    for cxr_id, image_masks in masks.items():
        entry = raw[cxr_id]
        for pathology, rle in image_masks.items() if SIZE in entry else ():
            yield rle.height, rle.width, next((entry[name] for name in names[pathology] if name in entry), [])


def _mask(
    entry: Mapping[str, object], pathology: str, names: Mapping[str, Sequence[str]], cxr_id: str, source: str
) -> Rle:
    """Read a pathology's mask from an image's entry, under the first of its names that the entry has."""
    name = next((candidate for candidate in names[pathology] if candidate in entry), None)
    where = f"{source}: '{shortened(cxr_id, 300)}', {pathology}"
    try:
        if SIZE in entry:
            return _from_polygons(entry[SIZE], entry[name] if name else [])
        if name is None:
            served = {option for options in names.values() for option in options}
            meant = similar_name(pathology, (key for key in entry if key not in served))
            hint = f"did you mean {meant[:80]!r}?" if meant else "an empty mask is written as a run of zeros"
            raise ValueError(f"is missing ({hint})")
        return _from_rle(entry[name])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{where}: {error}: correct the file") from None


def _size(value: object) -> tuple[int, int]:
    """Check a size [height, width] in pixels and return it."""
    if not (isinstance(value, list) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)):
        raise ValueError(f"size is {quoted(value)}, not [height, width]")
    if value[0] * value[1] > MAX_PIXELS:
        raise ValueError(f"size {value[0]} x {value[1]} is out of bounds")
    return value[0], value[1]


def _from_polygons(size: object, contours: object) -> Rle:
    """Check a polygon entry and rasterise it; without contours nothing of the image's size is allocated."""
    height, width = _size(size)
    if not isinstance(contours, list):
        raise ValueError("contours are not a list")
    for contour in contours:
        for point in contour:
            if not (isinstance(point, list) and len(point) == 2 and all(_is_coordinate(number) for number in point)):
                raise ValueError(f"a contour has the point {quoted(point)}, not [x, y] in pixels")
    if not contours:
        return Rle(height, width, _encode_runs([height * width]))
    check_contours(contours, height, width)
    return Rle(height, width, encode_rle(rasterise(contours, height, width)))


def _is_coordinate(value: object) -> bool:
    """Return whether a value is a usable coordinate: a number that is neither NaN nor too large for Pillow.

    Points may lie outside the image, but Pillow draws nonsense for NaN and for numbers beyond 32 bits.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_PIXELS


def _from_rle(value: object) -> Rle:
    """Check a run-length entry {size, counts} and return it."""
    if not isinstance(value, dict) or not isinstance(value.get("counts"), str):
        raise ValueError("is not {size, counts} with counts as text")
    height, width = _size(value.get("size"))
    covered = sum(decode_runs(value["counts"]))
    if covered != height * width:
        raise ValueError(f"runs cover {covered} pixels, size {height} x {width} has {height * width}")
    return Rle(height, width, value["counts"])


def exchange_entry(pathologies: Sequence[str], masks: npt.NDArray[np.bool_]) -> dict[str, dict[str, object]]:
    """Build one image's entry of a CheXlocalize segmentation file.

    Args:
        pathologies: K names.
        masks: bool [K, h, w] at the image's original resolution.

    Returns:
        {pathology: {size: [h, w], counts}}.
    """
    return {
        name: {"size": list(mask.shape), "counts": encode_rle(mask)}
        for name, mask in zip(pathologies, masks, strict=True)
    }


def exchange_json(entries: Mapping[str, Mapping[str, Mapping[str, object]]]) -> str:
    """Write a CheXlocalize segmentation file.

    Args:
        entries: {cxr_id: entry of `exchange_entry`}, with every image and every pathology, empty masks included.

    Returns:
        The file's text.
    """
    return json.dumps(entries, separators=(",", ":"))


def area_share(rle: Rle) -> float:
    """Return the share of its image that the mask `rle` covers, in [0, 1].

    Raises:
        ValueError: its counts are not a COCO run-length string.
    """
    return rle.area / (rle.height * rle.width)


def is_empty(rle: Rle) -> bool:
    """Return whether the mask `rle` has no pixel set.

    Raises:
        ValueError: its counts are not a COCO run-length string.
    """
    return rle.area == 0
