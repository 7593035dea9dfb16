"""Read the X-ray of a DICOM file, with pydicom (the extra `dicom`)."""

import importlib.util
import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from chexseg_ray.data.images import DAMAGE, MAX_PIXELS, ImageError
from chexseg_ray.errors import InputError

HEAD = 1024  # bytes at the start of a file that show what it is

# Transfer syntax of deflated files: pydicom inflates all of it before the image's size is known.
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_DIRECTORY = b"\x02\0\x02\0UI\x14\x001.2.840.10008.1.3.10"  # Media Storage SOP Class UID of a DICOMDIR
# Parts of pydicom's messages for a compression that it cannot decode.
_NO_DECODER = ("missing dependencies", "' is not supported", "does not support")

Floats = npt.NDArray[np.float32]


def is_dicom(data: bytes) -> bool:
    """Return whether `data` are the bytes of a DICOM file (part 10: `DICM` after a preamble of 128 bytes)."""
    return data[128:132] == b"DICM"


def is_dicom_directory(data: bytes) -> bool:
    """Return whether a DICOM file is a DICOMDIR, which lists the files of a disc and has no image.

    Args:
        data: the file's first `HEAD` bytes, or more.
    """
    return is_dicom(data) and _DIRECTORY in data[132:HEAD]


def has_pydicom() -> bool:
    """Return whether pydicom is installed, without importing it."""
    return importlib.util.find_spec("pydicom") is not None


def require_pydicom(source: str = "X-rays") -> None:
    """Check that pydicom is installed.

    Args:
        source: the file that needs it, for the message.

    Raises:
        InputError: pydicom is not installed.
    """
    if not has_pydicom():
        remedy = "pip install pydicom, or this package as chexseg-ray[dicom]"
        raise InputError(f"{source}: a DICOM file needs pydicom: {remedy}")


def decode_dicom(data: bytes, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode the one image of a DICOM file, as radiologists see it.

    Args:
        data: the whole file.
        max_pixels: the most pixels that an image may have.

    Returns:
        uint8 [height, width], 0 to 255: modality LUT and window (or VOI LUT) applied, MONOCHROME1 inverted, padding
        black. Without a window, unrescaled pixels of 8 bits keep their values (signed ones are shifted to start at 0);
        deeper or rescaled pixels are stretched between their least and largest value, padding excluded.

    Raises:
        ImageError: `undecodable`, `format` (colour, deflated, or bits that do not begin at the lowest), `multiframe`,
            `no_pixels`, `too_large` (over `max_pixels`, before decoding), or `compression` (pydicom has no decoder for
            it; uncompressed, RLE and baseline JPEG files always work).
        InputError: pydicom is not installed.
    """
    require_pydicom()
    import pydicom
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        if _DEFLATED in data:  # searched everywhere, because the elements before it may have any length
            raise ImageError("format")
        dataset = pydicom.dcmread(io.BytesIO(data))
        _refuse_others(dataset, max_pixels)
        values = _pixels(dataset)
        padding = _padding(values, dataset)
        grey = _to_grey(values, padding, dataset)
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
    """Raise ImageError unless a data set's header describes one grey image of at most `max_pixels` pixels."""
    size = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0)
    if not size or not dataset.get("PixelData"):
        raise ImageError("no_pixels")
    if not str(dataset.get("PhotometricInterpretation", "")).startswith("MONOCHROME"):
        raise ImageError("format")
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise ImageError("format")
    # pydicom reads the lowest BitsStored bits whatever HighBit is.
    if dataset.get("HighBit") is not None and int(dataset.HighBit) != int(dataset.BitsStored) - 1:
        raise ImageError("format")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise ImageError("multiframe")
    if size > max_pixels:
        raise ImageError("too_large")


def _pixels(dataset: Any) -> npt.NDArray[Any]:
    """Decode the stored values [h, w]."""
    try:
        values = np.asarray(dataset.pixel_array)
    except RuntimeError as error:  # pydicom raises it for a decoder that is missing and for one that failed
        lacks_decoder = any(part in str(error) for part in _NO_DECODER)
        raise ImageError("compression" if lacks_decoder else "undecodable") from error
    if values.ndim != 2:
        raise ImageError("format")
    return values


def _padding(values: npt.NDArray[Any], dataset: Any) -> npt.NDArray[np.bool_] | None:
    """Mark the stored values [h, w] that are padding, not image (PS3.3 C.7.5.1.1.2).

    Returns:
        bool [h, w]; None when the file names no padding value, or one outside the range of its pixels.
    """
    first = dataset.get("PixelPaddingValue")
    last = dataset.get("PixelPaddingRangeLimit")
    if first is None:
        return None
    ends = np.array([int(first), int(first if last is None else last)])
    bits = 8 * values.dtype.itemsize
    if not ((-(2 ** (bits - 1)) <= ends) & (ends < 2**bits)).all():  # left over from deeper pixels
        return None
    low, high = sorted(ends.astype(values.dtype).tolist())  # a file may write a negative value as unsigned
    inside: npt.NDArray[np.bool_] = (values >= low) & (values <= high)
    return inside


def _to_grey(values: npt.NDArray[Any], padding: npt.NDArray[np.bool_] | None, dataset: Any) -> npt.NDArray[np.uint8]:
    """Map stored values [h, w] to uint8 by the modality LUT or rescale, then the VOI LUT, the window or a stretch.

    MONOCHROME1 is not inverted here.
    """
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    slope = float(dataset.get("RescaleSlope") or 1)
    intercept = float(dataset.get("RescaleIntercept") or 0)
    has_modality_lut = "ModalityLUTSequence" in dataset and len(dataset.ModalityLUTSequence) > 0
    is_rescaled = has_modality_lut or (slope, intercept) != (1.0, 0.0)
    if has_modality_lut:
        values = apply_modality_lut(values, dataset)
    if "VOILUTSequence" in dataset and len(dataset.VOILUTSequence) > 0:
        descriptor = dataset.VOILUTSequence[0].LUTDescriptor
        stored = values if has_modality_lut else np.rint(values * slope + intercept).astype(np.int64)
        return _to_bytes(apply_voi_lut(stored, dataset).astype(np.float32), 0.0, 2.0 ** int(descriptor[2]) - 1)
    rescaled = values.astype(np.float32)
    if not has_modality_lut:
        rescaled = rescaled * np.float32(slope) + np.float32(intercept)
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    window = _window(dataset, 1.0 if function == "LINEAR" else 1e-6)
    if window:
        centre, width = window
        return _apply_window(rescaled, centre, width, function)
    if int(dataset.BitsStored) <= 8 and not is_rescaled:
        is_signed = int(dataset.get("PixelRepresentation") or 0)
        low = -(2.0 ** (int(dataset.BitsStored) - 1)) if is_signed else 0.0
        return _to_bytes(rescaled, low, low + 2.0 ** int(dataset.BitsStored) - 1)
    inside = rescaled if padding is None or padding.all() else rescaled[~padding]
    return _to_bytes(rescaled, float(inside.min()), float(inside.max()))


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
    return [math.nan if entry is None or entry == "" else float(entry) for entry in entries]


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
