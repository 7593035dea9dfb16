"""Read the X-ray of a DICOM file, with pydicom (the extra `dicom`)."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from chexseg_ray.data.images import MAX_PIXELS, ImageError
from chexseg_ray.errors import InputError

_DEFLATED = b"1.2.840.10008.1.2.1.99"  # in the header, never deflated itself; the rest is inflated whole, before its size is known
# what pydicom raises on bytes that are not as the standard says
_DAMAGE = (AttributeError, ArithmeticError, EOFError, LookupError, OSError, RecursionError, TypeError, ValueError, struct.error, zlib.error)

Floats = npt.NDArray[np.float32]


def is_dicom(data: bytes) -> bool:
    """Whether bytes are a DICOM file's (part 10: `DICM` after a preamble of 128 bytes)."""
    return data[128:132] == b"DICM"


def require_pydicom() -> None:
    """Raise InputError when pydicom is not installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise InputError("DICOM files need pydicom: pip install pydicom, or this package with its extra [dicom]") from None


def decode_dicom(data: bytes) -> npt.NDArray[np.uint8]:
    """The one image of a DICOM file, as radiologists see it.

    Args:
        data: the whole file.

    Returns:
        uint8 [height, width], 0 to 255: modality LUT and window (or VOI LUT) applied, MONOCHROME1 turned round. Without a window, 8-bit pixels
        are taken as they are, deeper or rescaled ones stretched between their least and largest value.

    Raises:
        ImageError: `undecodable`, `format` (colour, or deflated), `multiframe`, `no_pixels`, `too_large`, or `compression` (pydicom alone does
            not decode it: baseline JPEG, RLE and uncompressed it does).
        InputError: pydicom is not installed.
    """
    require_pydicom()
    import pydicom
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        if _DEFLATED in data[132:2048]:
            raise ImageError("format")
        dataset = pydicom.dcmread(io.BytesIO(data))
        _refuse_others(dataset)
        grey = _shown(_pixels(dataset), dataset)
    except ImageError:
        raise
    except (*_DAMAGE, NotImplementedError, BytesLengthException, InvalidDicomError) as error:
        raise ImageError("undecodable") from error
    turned: npt.NDArray[np.uint8] = np.uint8(255) - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey
    return turned


def _refuse_others(dataset: Any) -> None:
    if not str(dataset.get("PhotometricInterpretation", "")).startswith("MONOCHROME") or int(dataset.get("SamplesPerPixel") or 1) != 1:
        raise ImageError("format")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise ImageError("multiframe")
    size = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0)
    if not size or "PixelData" not in dataset:
        raise ImageError("no_pixels")
    if size > MAX_PIXELS:
        raise ImageError("too_large")


def _pixels(dataset: Any) -> npt.NDArray[Any]:
    try:
        values = np.asarray(dataset.pixel_array)
    except RuntimeError as error:  # pydicom's word for a decoder that is missing, and for one that failed
        missing = "missing dependencies" in str(error)
        raise ImageError("compression" if missing else "undecodable") from error
    if values.ndim != 2:
        raise ImageError("format")
    return values


def _shown(values: npt.NDArray[Any], dataset: Any) -> npt.NDArray[np.uint8]:
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
    if "WindowCenter" in dataset and "WindowWidth" in dataset:
        return _windowed(own, _first(dataset.WindowCenter), _first(dataset.WindowWidth), str(dataset.get("VOILUTFunction") or "LINEAR"))
    if int(dataset.BitsStored) <= 8 and not rescaled:
        low = -(2.0 ** (int(dataset.BitsStored) - 1)) if int(dataset.get("PixelRepresentation") or 0) else 0.0
        return _to_bytes(own, low, low + 2.0 ** int(dataset.BitsStored) - 1)
    return _to_bytes(own, float(own.min()), float(own.max()))


def _first(value: Any) -> float:
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)


def _windowed(values: Floats, centre: float, width: float, function: str) -> npt.NDArray[np.uint8]:
    """PS3.3 C.11.2.1: LINEAR, LINEAR_EXACT or SIGMOID."""
    if function == "SIGMOID":
        if width <= 0:
            raise ImageError("undecodable")
        return _to_bytes(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -80, 80))), 0.0, 1.0)
    if function not in ("LINEAR", "LINEAR_EXACT") or width < (1 if function == "LINEAR" else 1e-6):
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
