"""DICOM files that tests make."""

import io
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian

from chexseg_ray.data.dicom import decode_dicom


def made(values: np.ndarray, colour: str = "MONOCHROME2", bits: int = 12, **more: Any) -> bytes:
    """A DICOM file of uint16 values [h, w]."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = meta.MediaStorageSOPClassUID, "1.2.3.4", "DX"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, colour
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, bits, bits - 1, 0
    dataset.PixelData = values.astype("<u2").tobytes()
    for name, value in more.items():
        setattr(dataset, name, value)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def compressed(frame: bytes, syntax: str, shape: tuple[int, int], bits: int = 8) -> bytes:
    """A DICOM file of one compressed frame, whatever it holds."""
    dataset = pydicom.dcmread(io.BytesIO(made(np.zeros(shape), bits=bits)))
    dataset.file_meta.TransferSyntaxUID, dataset.BitsAllocated = syntax, 8 if bits == 8 else 16
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, implicit_vr=False, little_endian=True)
    return stream.getvalue()


def pixels(data: bytes, **options: Any) -> np.ndarray:
    """The grey of a DICOM file, without its notes."""
    return decode_dicom(data, **options).grey


def lut(entries: list[int] | bytes, first: int, bits: int, count: int | None = None) -> pydicom.Sequence:
    """A sequence of one table; bytes are stored as they are, numbers as words."""
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries) if count is None else count, first, bits])
    item.add_new(0x00283006, "OW" if isinstance(entries, bytes) else "US", entries)
    item.add_new(0x00283004, "LO", "US")
    return pydicom.Sequence([item])
