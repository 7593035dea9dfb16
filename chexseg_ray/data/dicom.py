"""Read the X-ray of a DICOM file, with pydicom (the extra `dicom`)."""

import importlib.util
import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from chexseg_ray.data.images import DAMAGE, MAX_PIXELS, ImageError
from chexseg_ray.errors import InputError

HEAD = 1024  # bytes of a file that tell what it is
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # the transfer syntax of files that are inflated whole, before their size is known
_DIRECTORY = b"\x02\0\x02\0UI\x14\x001.2.840.10008.1.3.10"  # its Media Storage SOP Class UID
_LACKING = ("missing dependencies", "' is not supported", "does not support")  # in pydicom's words for a compression that it cannot undo

Floats = npt.NDArray[np.float32]


def is_dicom(data: bytes) -> bool:
    """Whether bytes are a DICOM file's (part 10: `DICM` after a preamble of 128 bytes)."""
    return data[128:132] == b"DICM"


def is_dicom_directory(data: bytes) -> bool:
    """Whether a DICOM file is a DICOMDIR, which lists the files of a disc and has no image; its first `HEAD` bytes will do."""
    return is_dicom(data) and _DIRECTORY in data[132:HEAD]


def has_pydicom() -> bool:
    """Whether pydicom is installed; it is not imported."""
    return importlib.util.find_spec("pydicom") is not None


def require_pydicom(shown: str = "X-rays") -> None:
    """Raise InputError, which names the file, when pydicom is not installed."""
    if not has_pydicom():
        raise InputError(f"{shown}: a DICOM file needs pydicom: pip install pydicom, or this package as chexseg-ray[dicom]")


def decode_dicom(data: bytes, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """The one image of a DICOM file, as radiologists see it.

    Args:
        data: the whole file.
        max_pixels: the most that an image may have.

    Returns:
        uint8 [height, width], 0 to 255: modality LUT and window (or VOI LUT) applied, MONOCHROME1 turned round, padding black. Without a window,
        8-bit pixels are taken as they are, deeper or rescaled ones stretched between their least and largest value, padding apart.

    Raises:
        ImageError: `undecodable`, `format` (colour, deflated, or bits that do not begin at the lowest), `multiframe`, `no_pixels`, `too_large`
            (over `max_pixels`, before decoding), or `compression` (pydicom alone does not decode it: baseline JPEG, RLE and uncompressed it does).
        InputError: pydicom is not installed.
    """
    require_pydicom()
    import pydicom
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        if _DEFLATED in data:  # anywhere: what stands before the transfer syntax may be of any length
            raise ImageError("format")
        dataset = pydicom.dcmread(io.BytesIO(data))
        _refuse_others(dataset, max_pixels)
        values = _pixels(dataset)
        padding = _padding(values, dataset)
        grey = _shown(values, padding, dataset)
    except ImageError:
        raise
    except (*DAMAGE, NotImplementedError, BytesLengthException, InvalidDicomError) as error:
        raise ImageError("undecodable") from error
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = np.uint8(255) - grey
    if padding is not None:
        grey[padding] = 0
    return grey


def _refuse_others(dataset: Any, max_pixels: int) -> None:
    size = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0)
    if not size or not dataset.get("PixelData"):
        raise ImageError("no_pixels")
    if not str(dataset.get("PhotometricInterpretation", "")).startswith("MONOCHROME") or int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise ImageError("format")
    if dataset.get("HighBit") is not None and int(dataset.HighBit) != int(dataset.BitsStored) - 1:  # pydicom would read the lowest bits all the same
        raise ImageError("format")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise ImageError("multiframe")
    if size > max_pixels:
        raise ImageError("too_large")


def _pixels(dataset: Any) -> npt.NDArray[Any]:
    try:
        values = np.asarray(dataset.pixel_array)
    except RuntimeError as error:  # pydicom's word for a decoder that is missing, and for one that failed
        raise ImageError("compression" if any(words in str(error) for words in _LACKING) else "undecodable") from error
    if values.ndim != 2:
        raise ImageError("format")
    return values


def _padding(values: npt.NDArray[Any], dataset: Any) -> npt.NDArray[np.bool_] | None:
    """Which stored values [h, w] are no part of the image (PS3.3 C.7.5.1.1.2); None when the file names none that its pixels can have."""
    first, last = (dataset.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if first is None:
        return None
    ends, bits = np.array([int(first), int(first if last is None else last)]), 8 * values.dtype.itemsize
    if not ((-(2 ** (bits - 1)) <= ends) & (ends < 2**bits)).all():  # left over from deeper pixels
        return None
    low, high = sorted(ends.astype(values.dtype).tolist())  # a file may write a negative value as unsigned
    inside: npt.NDArray[np.bool_] = (values >= low) & (values <= high)
    return inside


def _shown(values: npt.NDArray[Any], padding: npt.NDArray[np.bool_] | None, dataset: Any) -> npt.NDArray[np.uint8]:
    """Stored values to 0..255."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    modality = "ModalityLUTSequence" in dataset and len(dataset.ModalityLUTSequence) > 0
    rescaled = modality or (slope, intercept) != (1.0, 0.0)
    if modality:
        values = apply_modality_lut(values, dataset)
    if "VOILUTSequence" in dataset and len(dataset.VOILUTSequence) > 0:
        table = dataset.VOILUTSequence[0].LUTDescriptor
        stored = values if modality else np.rint(values * slope + intercept).astype(np.int64)
        return _to_bytes(apply_voi_lut(stored, dataset).astype(np.float32), 0.0, 2.0 ** int(table[2]) - 1)
    own = values.astype(np.float32)
    own = own if modality else own * np.float32(slope) + np.float32(intercept)
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    window = _window(dataset, 1.0 if function == "LINEAR" else 1e-6)
    if window:
        return _windowed(own, *window, function)
    if int(dataset.BitsStored) <= 8 and not rescaled:
        low = -(2.0 ** (int(dataset.BitsStored) - 1)) if int(dataset.get("PixelRepresentation") or 0) else 0.0
        return _to_bytes(own, low, low + 2.0 ** int(dataset.BitsStored) - 1)
    inside = own if padding is None or padding.all() else own[~padding]
    return _to_bytes(own, float(inside.min()), float(inside.max()))


def _window(dataset: Any, least: float) -> tuple[float, float] | None:
    """The first (centre, width) with both numbers and a width of at least `least`; None when there is none: some files leave the fields empty."""
    pairs = zip(_numbers(dataset.get("WindowCenter")), _numbers(dataset.get("WindowWidth")), strict=False)
    return next(((centre, width) for centre, width in pairs if math.isfinite(centre) and least <= width < math.inf), None)


def _numbers(value: Any) -> list[float]:
    """NaN for what is empty."""
    several = value if hasattr(value, "__len__") and not isinstance(value, str) else [value]
    return [math.nan if own is None or own == "" else float(own) for own in several]


def _windowed(values: Floats, centre: float, width: float, function: str) -> npt.NDArray[np.uint8]:
    """PS3.3 C.11.2.1: LINEAR, LINEAR_EXACT or SIGMOID."""
    if function == "SIGMOID":
        return _to_bytes(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -80, 80))), 0.0, 1.0)
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise ImageError("undecodable")
    exact = function == "LINEAR_EXACT"
    low = centre - width / 2 if exact else centre - 0.5 - (width - 1) / 2
    return _to_bytes(values, low, low + (width if exact else max(width - 1, 1e-6)))


def _to_bytes(values: Floats, low: float, high: float) -> npt.NDArray[np.uint8]:
    scaled = (values - np.float32(low)) * np.float32(255 / max(high - low, 1e-6))
    if not np.isfinite(scaled).all():
        raise ImageError("undecodable")
    out: npt.NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return out
