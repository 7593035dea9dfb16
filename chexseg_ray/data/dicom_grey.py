"""From the stored values of a DICOM image to 8-bit grey: modality LUT or rescale, then VOI LUT, window or stretch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chexseg_ray.data.images import FEW_GREYS, ImageError, has_few_greys

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_OTHER_BITS = "its VOI LUT has another number of bits than it says; that of its largest entry is taken"
_OWN_RANGE = f"its window or VOI LUT leaves {FEW_GREYS}, so the pixels' own range is shown"


def to_grey(
    values: npt.NDArray[Any], padding: npt.NDArray[np.bool_] | None, dataset: Any
) -> tuple[Bytes, tuple[str, ...]]:
    """Map stored values to grey by the modality LUT or rescale, then the VOI LUT, the window or a stretch.

    A VOI LUT or window that leaves hardly any grey values is passed over where the pixels have more. MONOCHROME1 is not
    inverted here.

    Args:
        values: [h, w].
        padding: bool [h, w], the pixels that are no image; None where there are none.
        dataset: of pydicom.

    Returns:
        uint8 [h, w], and notes.

    Raises:
        ImageError: `undecodable`, a table or window that breaks the standard.
    """
    slope, intercept = (
        _number(dataset.get(name)) or default for name, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    modality = _table(dataset, "ModalityLUTSequence")
    is_rescaled = modality is not None or (slope, intercept) != (1.0, 0.0)
    if modality is not None:
        rescaled = modality.look_up(values.astype(np.int64)).astype(np.float32)
    else:
        rescaled = values.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    image = None if padding is None or padding.all() else ~padding

    def own_range() -> Bytes:
        """Show the pixels without a VOI LUT or window."""
        if int(dataset.BitsStored) <= 8 and not is_rescaled:
            is_signed = int(dataset.get("PixelRepresentation") or 0)
            low = -(2.0 ** (int(dataset.BitsStored) - 1)) if is_signed else 0.0
            return _to_bytes(rescaled, low, low + 2.0 ** int(dataset.BitsStored) - 1)
        inside = rescaled if image is None else rescaled[image]
        return _to_bytes(rescaled, float(inside.min()), float(inside.max()))

    table = _table(dataset, "VOILUTSequence")
    notes: tuple[str, ...] = ()
    if table is not None:
        exact = np.rint(values * slope + intercept) if modality is None else rescaled
        grey = _to_bytes(table.look_up(exact.astype(np.int64)).astype(np.float32), 0.0, 2.0**table.bits - 1)
        notes = () if table.bits == table.stated_bits else (_OTHER_BITS,)
    else:
        function = str(dataset.get("VOILUTFunction") or "LINEAR")
        window = _window(dataset, 1.0 if function == "LINEAR" else 1e-6)
        if not window:
            return own_range(), ()
        grey = _apply_window(rescaled, *window, function)
    return _or_own_range(grey, notes, image, own_range)


def _or_own_range(
    grey: Bytes, notes: tuple[str, ...], image: npt.NDArray[np.bool_] | None, own_range: Callable[[], Bytes]
) -> tuple[Bytes, tuple[str, ...]]:
    """Return `grey` and its notes, or the pixels' own range if only that has more than a few grey values."""

    def is_flat(pixels: Bytes) -> bool:
        return has_few_greys(pixels if image is None else pixels[image][None])

    if is_flat(grey) and not is_flat(own := own_range()):
        return own, (_OWN_RANGE,)
    return grey, notes


@dataclass(frozen=True, eq=False)
class _Table:
    """A modality or VOI LUT.

    Args:
        entries: int64 [n], for the values from `first` on; smaller and larger values take the first and last entry.
        first: the value that the first entry is for.
        stated_bits: of an entry, as the file says.
    """

    entries: npt.NDArray[np.int64]
    first: int
    stated_bits: int

    @property
    def bits(self) -> int:
        """The number of bits of the largest entry, at least 1: files state too many and too few."""
        return max(1, int(self.entries.max()).bit_length())

    def look_up(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the entries of values of any shape."""
        is_signed = self.first >= 2**15 and values.min() < 0  # a negative first value, written as unsigned
        places = values - (self.first - 2**16 if is_signed else self.first)
        return self.entries[np.clip(places, 0, len(self.entries) - 1)]


def _table(dataset: Any, name: str) -> _Table | None:
    """Return the first table of a sequence; None where its items have no entries, as some files leave them.

    Raises:
        ImageError: `undecodable`, a table that has fewer entries than it says.
    """
    for item in dataset.get(name) or ():
        stored, descriptor = item.get("LUTData"), item.get("LUTDescriptor")
        if stored is None or stored in (b"", "") or descriptor is None:
            continue
        count, first, bits = (int(value) for value in descriptor)
        count = count or 2**16
        words = _words(stored, bool(dataset.original_encoding[1]) or item["LUTData"].VR == "OB")
        if len(words) < count and bits <= 8:  # two entries of 8 bits in a word, the lower one first (C.11.2.1.1)
            words = words.astype("<u2").view(np.uint8)
        if len(words) < count:
            raise ImageError("undecodable")
        return _Table(words[:count].astype(np.int64), first, bits)
    return None


def _words(stored: Any, is_little: bool) -> npt.NDArray[Any]:
    """Return the 16-bit words of a table's data, which pydicom gives as bytes, numbers or one number."""
    if isinstance(stored, bytes):
        even = stored + b"\0" * (len(stored) % 2)
        return np.frombuffer(even, "<u2" if is_little else ">u2")
    return np.atleast_1d(np.asarray(stored, dtype=np.int64) & 0xFFFF)


def _window(dataset: Any, min_width: float) -> tuple[float, float] | None:
    """Return the first (centre, width) with two numbers and a width of at least `min_width`.

    None when there is no such pair: some files leave the fields empty.
    """
    centres = _numbers(dataset.get("WindowCenter"))
    widths = _numbers(dataset.get("WindowWidth"))
    for centre, width in zip(centres, widths, strict=False):
        if math.isfinite(centre) and min_width <= width < math.inf:
            return centre, width
    return None


def _numbers(value: Any) -> list[float]:
    """Convert an element's value or values to floats; an empty value becomes NaN."""
    is_list = hasattr(value, "__len__") and not isinstance(value, str)
    entries = value if is_list else [value]
    return [math.nan if entry is None or entry == "" else _number(entry) for entry in entries]


def _number(value: Any) -> float:
    """Convert one value to a float, also with a decimal comma; nothing becomes 0."""
    return float(str(value).replace(",", ".")) if value is not None and value != "" else 0.0


def _apply_window(values: Floats, centre: float, width: float, function: str) -> npt.NDArray[np.uint8]:
    """Map values to uint8 by a window with the function LINEAR, LINEAR_EXACT or SIGMOID (PS3.3 C.11.2.1)."""
    if function == "SIGMOID":
        return _to_bytes(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -80, 80))), 0.0, 1.0)
    if function == "LINEAR_EXACT":
        low = centre - width / 2
        return _to_bytes(values, low, low + width)
    if function == "LINEAR":
        low = centre - 0.5 - (width - 1) / 2
        return _to_bytes(values, low, low + max(width - 1, 1e-6))
    raise ImageError("undecodable")


def _to_bytes(values: Floats, low: float, high: float) -> npt.NDArray[np.uint8]:
    """Map [low, high] linearly to 0..255, rounded and clipped; raise ImageError for a value that is not finite."""
    scaled = (values - np.float32(low)) * np.float32(255 / max(high - low, 1e-6))
    if not np.isfinite(scaled).all():
        raise ImageError("undecodable")
    out: npt.NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return out
