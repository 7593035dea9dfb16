"""Read the X-ray of a DICOM file, with pydicom (the extra `dicom`)."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from chexseg_ray.data.images import MAX_PIXELS, ImageError
from chexseg_ray.errors import InputError


def is_dicom(data: bytes) -> bool:
    """Whether bytes are a DICOM file's (part 10: `DICM` after a preamble of 128 bytes)."""
    return data[128:132] == b"DICM"


def decode_dicom(data: bytes) -> npt.NDArray[np.uint8]:
    """The one image of a DICOM file, as radiologists see it.

    Args:
        data: the whole file.

    Returns:
        uint8 [height, width], 0 to 255, bright where little was transmitted: modality LUT and window (or VOI LUT) applied, MONOCHROME1 turned
        round. Without a window, 8-bit pixels are taken as they are, deeper ones stretched between their least and largest value.

    Raises:
        ImageError: `undecodable`, `format` (colour, several frames, no pixels) or `too_large`.
        InputError: pydicom is not installed, or lacks what decodes this file's compression.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError:
        raise InputError("DICOM files need pydicom: pip install 'chexseg_ray[dicom]'") from None
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        colour = str(dataset.get("PhotometricInterpretation", ""))
        frames, size = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0)
        if not colour.startswith("MONOCHROME") or frames != 1 or not size or "PixelData" not in dataset:
            raise ImageError("format")
        if size > MAX_PIXELS:
            raise ImageError("too_large")
        values = dataset.pixel_array
    except NotImplementedError as error:
        raise InputError(f"this DICOM file's compression is not decoded here ({_line(error)}): convert it to an uncompressed one") from None
    except RuntimeError as error:  # pydicom's word for a missing decoder
        raise InputError(f"this DICOM file's compression needs a further package ({_line(error)}): install it, or convert the file") from None
    except (InvalidDicomError, AttributeError, KeyError, ValueError, OSError, EOFError, TypeError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError("undecodable") from error
    grey = _window(values, dataset)
    return np.asarray(255 - grey if colour == "MONOCHROME1" else grey, dtype=np.uint8)


def _window(values: npt.NDArray[Any], dataset: Any) -> npt.NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    base = apply_modality_lut(values, dataset)
    shown = np.asarray(base, dtype=np.float64)
    if "VOILUTSequence" in dataset or ("WindowCenter" in dataset and "WindowWidth" in dataset):
        shown = np.asarray(apply_voi_lut(base, dataset), dtype=np.float64)
        low, high = _voi_range(dataset, shown)
    elif int(dataset.BitsStored) <= 8 and "RescaleSlope" not in dataset:
        low, high = 0.0, 2.0 ** int(dataset.BitsStored) - 1
    else:
        low, high = float(shown.min()), float(shown.max())
    scaled = (shown - low) / max(high - low, 1e-9) * 255
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _voi_range(dataset: Any, shown: npt.NDArray[np.float64]) -> tuple[float, float]:
    """What a window's ends become: pydicom maps a window to the whole range of the stored bits, rescaled."""
    if "VOILUTSequence" in dataset:
        return 0.0, 2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    return low * slope + intercept, high * slope + intercept


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
