"""DICOM X-rays: real files in place, and made ones for windows, inversion, depth and refusals."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRLittleEndian

from chexseg_ray.data.dicom import decode_dicom, is_dicom
from chexseg_ray.data.images import ImageError
from chexseg_ray.errors import InputError


def made(values: np.ndarray, colour: str = "MONOCHROME2", bits: int = 12, **more: Any) -> bytes:
    """A DICOM file of uint16 values."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    own = Dataset()
    own.file_meta = meta
    own.SOPClassUID, own.SOPInstanceUID, own.Modality = meta.MediaStorageSOPClassUID, "1.2.3.4", "DX"
    own.Rows, own.Columns = values.shape
    own.SamplesPerPixel, own.PhotometricInterpretation = 1, colour
    own.BitsAllocated, own.BitsStored, own.HighBit, own.PixelRepresentation = 16, bits, bits - 1, 0
    own.PixelData = values.astype("<u2").tobytes()
    for name, value in more.items():
        setattr(own, name, value)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, own, enforce_file_format=True)
    return stream.getvalue()


def test_real_files_are_what_their_jpeg_is_and_monochrome1_is_turned_round(real_data: Path) -> None:
    files = sorted((real_data / "dicom").glob("*.dcm"))
    found = [(pydicom.dcmread(path), decode_dicom(path.read_bytes())) for path in files]
    assert {str(d.PhotometricInterpretation) for d, _ in found} == {"MONOCHROME1", "MONOCHROME2"}
    assert all(is_dicom(path.read_bytes()) for path in files)
    for dataset, grey in found:
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
        with Image.open(io.BytesIO(frame)) as image:
            stored = np.asarray(image)
        windowed = "WindowCenter" in dataset
        expected = 255 - stored if dataset.PhotometricInterpretation == "MONOCHROME1" else stored
        assert grey.shape == (dataset.Rows, dataset.Columns)
        if not windowed:
            assert np.abs(grey.astype(int) - expected).max() <= 1
        assert np.corrcoef(grey.ravel(), expected.ravel())[0, 1] > 0.95


def test_a_window_maps_its_ends_to_black_and_white() -> None:
    values = np.array([[0, 1000, 1500, 2000, 4095]])
    grey = decode_dicom(made(values, WindowCenter=1500, WindowWidth=1001))
    assert grey[0, 0] == 0
    assert grey[0, 4] == 255
    assert grey[0, 1] <= 1
    assert grey[0, 3] >= 254
    assert abs(int(grey[0, 2]) - 127) <= 1
    np.testing.assert_array_equal(decode_dicom(made(values, "MONOCHROME1", WindowCenter=1500, WindowWidth=1001)), 255 - grey)


def test_without_a_window_deep_pixels_are_stretched() -> None:
    grey = decode_dicom(made(np.array([[100, 300, 500]])))
    assert grey.tolist() == [[0, 128, 255]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"PhotometricInterpretation": "RGB"}, "format"), ({"NumberOfFrames": 2}, "format"), ({"Rows": 60000, "Columns": 60000}, "too_large"),
     ({"PixelData": b"\0\0"}, "undecodable")],
)  # fmt: skip
def test_what_is_no_single_grey_image_is_rejected_by_name(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        decode_dicom(made(np.zeros((4, 4)), **change))


def test_damaged_bytes_are_rejected(rng: np.random.Generator) -> None:
    good = made(np.zeros((4, 4)))
    for cut in (132, 200, len(good) - 3):
        with pytest.raises(ImageError):
            decode_dicom(good[:cut])
    assert not is_dicom(b"\x89PNG")


def test_without_pydicom_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(InputError, match=r"chexseg_ray\[dicom\]"):
        decode_dicom(b"\0" * 128 + b"DICM")
