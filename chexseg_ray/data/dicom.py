"""Read the X-ray of a DICOM file, with pydicom (the extra `dicom`)."""

import importlib.util
import io
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from chexseg_ray.data.dicom_frames import refuse_inflating
from chexseg_ray.data.dicom_grey import to_grey
from chexseg_ray.data.images import DAMAGE, MAX_PIXELS, Decoded, ImageError
from chexseg_ray.errors import InputError

DICOM_SUFFIXES = (".dcm", ".dicom")
HEAD = 1024  # bytes at the start of a file that show what it is
XRAY_MODALITIES = ("CR", "DX", "RF", "XA")
FOR_PROCESSING = "FOR PROCESSING"  # a Presentation Intent Type: the detector's raw data, not for reading

# Transfer syntax of deflated files: pydicom inflates all of it before the image's size is known.
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_DIRECTORY = b"\x02\0\x02\0UI\x14\x001.2.840.10008.1.3.10"  # Media Storage SOP Class UID of a DICOMDIR
# Value representations that the first element of a data set without a meta header may have
_FIRST_VRS = (b"AE", b"CS", b"DA", b"DT", b"IS", b"LO", b"OB", b"PN", b"SH", b"ST", b"TM", b"UI", b"UL", b"US")
# Parts of pydicom's messages for a compression that it cannot decode.
_NO_DECODER = ("missing dependencies", "' is not supported", "does not support")
# SOP classes (below 1.2.840.10008.5.1.4.1.1.) of files without a Modality that may be a chest X-ray: CR, DX for
# presentation and for processing, XA, RF, secondary capture and its grey forms
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_XRAY_CLASSES = ("1", "1.1", "1.1.1", "12.1", "12.2", "7", "7.2", "7.3")
_DX_FOR_PROCESSING = f"{_STORAGE}1.1.1"
_NO_MODALITY = "its DICOM header names no Modality, so it may be no X-ray"
_INVERSE = "PresentationLUTShape is INVERSE beside MONOCHROME2, so it is shown inverted"
_IDENTITY = "PresentationLUTShape is IDENTITY beside MONOCHROME1, which contradict each other: shown inverted"


def is_dicom(data: bytes) -> bool:
    """Return whether bytes are a DICOM file.

    Args:
        data: the file's first `HEAD` bytes, or more.

    Returns:
        Whether it has the form of part 10 (`DICM` after a preamble of 128 bytes), or begins with the elements of a
        data set, as files without preamble and meta header do.
    """
    return data[128:132] == b"DICM" or _begins_as_data_set(data)


def _begins_as_data_set(data: bytes) -> bool:
    """Return whether bytes begin with an element of the group 2 or 8, explicit or implicit."""
    group = data[:2]
    if group in (b"\x02\0", b"\x08\0", b"\0\x08") and data[4:6] in _FIRST_VRS:
        return True
    element, length = int.from_bytes(data[2:4], "little"), int.from_bytes(data[4:8], "little")
    is_implicit = group == b"\x08\0" and element <= 0x60 and length <= 256 and length % 2 == 0
    return is_implicit and data[8 + length : 10 + length] in (b"\x08\0", b"\x10\0")


def is_dicom_directory(data: bytes) -> bool:
    """Return whether a DICOM file is a DICOMDIR, which lists the files of a disc and has no image.

    Args:
        data: the file's first `HEAD` bytes, or more.
    """
    return is_dicom(data) and _DIRECTORY in data[:HEAD]


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


def decode_dicom(data: bytes, max_pixels: int = MAX_PIXELS, allowed: Collection[str] = ()) -> Decoded:
    """Decode the one image of a DICOM file, as radiologists see it.

    Args:
        data: the whole file; without a meta header or transfer syntax, the encoding is guessed as viewers do.
        max_pixels: the most pixels that an image may have.
        allowed: modalities beside `XRAY_MODALITIES`, and `FOR_PROCESSING`, that are decoded too.

    Returns:
        The image: modality LUT and VOI LUT (or window) applied, inverted for MONOCHROME1 and for PresentationLUTShape
        INVERSE (once for both), padding black. Without a window, or if that leaves hardly any grey values, unrescaled
        pixels of 8 bits keep their values (signed ones are shifted to start at 0); deeper or rescaled pixels are
        stretched between their least and largest value, padding excluded.

    Raises:
        ImageError: `undecodable`, `format` (colour, deflated, or bits that do not begin at the lowest), `multiframe`,
            `no_pixels`, `modality` (the header says that it is no X-ray, or raw data of a detector), `too_large` (over
            `max_pixels`, before decoding), or `compression` (pydicom has no decoder for it; uncompressed, RLE and
            baseline JPEG files always work).
        InputError: pydicom is not installed.
    """
    require_pydicom()
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        dataset = _read(data)
        notes = _refuse_others(dataset, max_pixels, allowed)
        refuse_inflating(dataset, max_pixels)
        values = _pixels(dataset)
        padding = _padding(values, dataset)
        grey, more = to_grey(values, padding, dataset)
        inverted, why = _inversion(dataset)
    except ImageError:
        raise
    except (*DAMAGE, NotImplementedError, BytesLengthException, InvalidDicomError) as error:
        raise ImageError("undecodable") from error
    if inverted:
        grey = np.uint8(255) - grey
    if padding is not None:
        grey[padding] = 0
    return Decoded(grey, (*notes, *more, *why))


def dicom_size(data: bytes) -> tuple[int, int] | None:
    """Read the size of a DICOM file's image from its header.

    Args:
        data: the file, or its first bytes.

    Returns:
        (height, width) in pixels; None when the header is unreadable, or names no pixels or more than `MAX_PIXELS`.

    Raises:
        InputError: pydicom is not installed.
    """
    require_pydicom()
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        dataset = _read(data, header_only=True)
        height, width = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
    except (*DAMAGE, NotImplementedError, BytesLengthException, InvalidDicomError):  # an ImageError is a ValueError
        return None
    return (height, width) if 0 < height * width <= MAX_PIXELS else None


def _read(data: bytes, header_only: bool = False) -> Any:
    """Parse a file to a data set that names its transfer syntax; pixels are not decoded.

    Raises:
        ImageError: `format`, before a deflated file is inflated.
    """
    import pydicom
    from pydicom import uid
    from pydicom.dataset import FileMetaDataset

    if _DEFLATED in data:  # searched everywhere, because the elements before it may have any length
        raise ImageError("format")
    dataset = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=header_only)
    if "TransferSyntaxUID" not in dataset.file_meta:
        is_implicit, is_little = dataset.original_encoding
        syntax = uid.ExplicitVRLittleEndian if is_little else uid.ExplicitVRBigEndian
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            syntax = uid.JPEGBaseline8Bit  # what such files hold most often; anything else does not decode
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if is_implicit else syntax
        dataset.file_meta = meta
    return dataset


def _refuse_others(dataset: Any, max_pixels: int, allowed: Collection[str]) -> list[str]:
    """Raise ImageError unless a data set's header describes one grey X-ray of at most `max_pixels` pixels.

    Returns:
        Notes about the header.
    """
    size = int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0)
    if not size or not dataset.get("PixelData"):
        raise ImageError("no_pixels")
    notes = _refuse_modality(dataset, allowed)
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
    return notes


def _refuse_modality(dataset: Any, allowed: Collection[str]) -> list[str]:
    """Raise ImageError for a modality that is neither of an X-ray nor allowed, and for raw data of a detector.

    A file without a Modality passes with a note, unless its SOP class is that of something else.

    Returns:
        That note, or nothing.
    """
    modality, intent, kind = (_word(dataset, name) for name in ("Modality", "PresentationIntentType", "SOPClassUID"))
    is_raw = intent == FOR_PROCESSING or kind == _DX_FOR_PROCESSING
    is_xray = modality in XRAY_MODALITIES or modality in allowed
    if not modality:
        is_xray = not kind.startswith(_STORAGE) or kind.removeprefix(_STORAGE) in _XRAY_CLASSES
    if not is_xray or (is_raw and FOR_PROCESSING not in allowed):
        raise ImageError("modality")
    return [] if modality else [_NO_MODALITY]


def _word(dataset: Any, name: str) -> str:
    """Return the text of an element in capitals, without blanks around it; empty where there is none."""
    return str(dataset.get(name) or "").strip().upper()


def _inversion(dataset: Any) -> tuple[bool, list[str]]:
    """Return whether low values are white, and a note where the file says so twice and differently.

    MONOCHROME1 means it for itself (PS3.3 C.7.6.3.1.2). In a DX image, PresentationLUTShape INVERSE says the same of
    MONOCHROME1 (C.8.11.3.1.2), so both together invert once; beside MONOCHROME2, INVERSE inverts (C.11.6.1.2).
    """
    is_first, shape = (
        _word(dataset, "PhotometricInterpretation") == "MONOCHROME1",
        _word(dataset, "PresentationLUTShape"),
    )
    if is_first:
        return True, [_IDENTITY] if shape == "IDENTITY" else []
    return shape == "INVERSE", [_INVERSE] if shape == "INVERSE" else []


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
