"""DICOM X-rays: real files in place, and made ones for windows, inversion, depth and refusals."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from data.dicom_files import compressed, lut, made, pixels
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.uid import ExplicitVRLittleEndian

from chexseg_ray.data.dicom import HEAD, is_dicom, is_dicom_directory
from chexseg_ray.data.images import ImageError
from chexseg_ray.errors import InputError


def test_real_files_are_what_their_jpeg_is_and_monochrome1_is_turned_round(real_data: Path) -> None:
    files = sorted((real_data / "dicom").glob("*.dcm"))
    found = [(pydicom.dcmread(path), pixels(path.read_bytes())) for path in files]
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
    grey = pixels(made(values, WindowCenter=1500, WindowWidth=1001))
    assert grey[0, 0] == 0
    assert grey[0, 4] == 255
    assert grey[0, 1] <= 1
    assert grey[0, 3] >= 254
    assert abs(int(grey[0, 2]) - 127) <= 1
    np.testing.assert_array_equal(pixels(made(values, "MONOCHROME1", WindowCenter=1500, WindowWidth=1001)), 255 - grey)


def test_without_a_window_deep_pixels_are_stretched() -> None:
    grey = pixels(made(np.array([[100, 300, 500]])))
    assert grey.tolist() == [[0, 128, 255]]


def test_rescaled_values_are_windowed_whatever_their_sign() -> None:
    values = np.array([[0, 1000, 2000, 4000]])
    up = pixels(made(values, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=2900, WindowWidth=2001))
    assert up.tolist() == [[0, 0, 255, 255]]
    alone = pixels(made(np.array([[0, 500, 1000, 2000]]), RescaleSlope=2, WindowCenter=2000, WindowWidth=1001))
    assert alone.tolist() == [[0, 0, 128, 255]], "a slope without an intercept"
    down = pixels(made(values, RescaleSlope=-1, RescaleIntercept=4000, WindowCenter=2000.5, WindowWidth=2001))
    assert down.tolist() == [[255, 255, 128, 0]]


def test_windows_other_than_linear() -> None:
    values = np.array([[0, 1000, 1500, 2000, 4000]])
    exact = pixels(made(values, WindowCenter=1500, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT"))
    assert exact.tolist() == [[0, 0, 128, 255, 255]]
    sigmoid = pixels(made(values, WindowCenter=1500, WindowWidth=1000, VOILUTFunction="SIGMOID"))
    assert sigmoid.tolist() == [[1, 30, 128, 225, 255]]
    several = pixels(made(values, WindowCenter=[1500, 40], WindowWidth=[1001, 400]))
    assert several.tolist() == pixels(made(values, WindowCenter=1500, WindowWidth=1001)).tolist(), (
        "the first of several windows"
    )


@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": None, "WindowWidth": None},
        {"WindowCenter": "", "WindowWidth": 1001},
        {"WindowCenter": [], "WindowWidth": []},
        {"WindowCenter": 1500, "WindowWidth": None},
        {"WindowCenter": 1500},
        {"WindowCenter": 1500, "WindowWidth": 0},
        {"WindowCenter": 1500, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 1500, "WindowWidth": -3, "VOILUTFunction": "LINEAR_EXACT"},
    ],
)
def test_a_window_that_is_empty_or_has_no_width_is_none(window: dict[str, Any]) -> None:
    values = np.array([[0, 1000, 2000, 4000]])
    assert pixels(made(values, **window)).tolist() == pixels(made(values)).tolist()


def test_the_first_whole_window_counts() -> None:
    values = np.array([[0, 1000, 1500, 2000, 4095]])
    second = pixels(made(values, WindowCenter=[40, 1500], WindowWidth=[0, 1001]))
    assert second.tolist() == pixels(made(values, WindowCenter=1500, WindowWidth=1001)).tolist()


@pytest.mark.parametrize("colour", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("values", "padding"),
    [
        ([0, 1000, 1200, 1400], {"PixelPaddingValue": 0}),
        ([4095, 1000, 1200, 1400], {"PixelPaddingValue": 4095}),
        ([7, 1000, 1200, 1400], {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 9}),
        ([-2000, 1000, 1200, 1400], {"PixelPaddingValue": -2000, "PixelRepresentation": 1}),
        ([-3, 1000, 1200, 1400], {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": 0, "PixelRepresentation": 1}),
    ],
)
def test_padding_is_black_and_no_part_of_the_stretch(values: list[int], padding: dict[str, int], colour: str) -> None:
    stored = np.array([values]).astype("<i2").view("<u2")
    expected = [0, 0, 128, 255] if colour == "MONOCHROME2" else [0, 255, 127, 0]
    assert pixels(made(stored, colour, **padding)).tolist() == [expected]
    assert pixels(made(stored[:, :1], colour, **padding)).tolist() == [[0]], "nothing but padding"


@pytest.mark.parametrize("value", [522, 2000, 4095, 65535])
def test_padding_that_the_pixels_cannot_have_is_none(value: int) -> None:
    """Left over in a file that was made of a deeper one."""
    dataset = pydicom.dcmread(io.BytesIO(made(np.array([[0, 10, 208, 255]]), bits=8, PixelPaddingValue=value)))
    dataset.BitsAllocated, dataset.PixelData = 8, bytes([0, 10, 208, 255])
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, implicit_vr=False, little_endian=True)
    assert pixels(stream.getvalue()).tolist() == [[0, 10, 208, 255]]


def test_a_voi_lut_is_looked_up() -> None:
    grey = pixels(made(np.array([[9, 10, 11, 12, 50]]), VOILUTSequence=lut([0, 100, 1000, 4095], 10, 12)))
    assert grey.tolist() == [[0, 0, 6, 62, 255]]


def test_eight_bits_are_taken_as_they_are_also_with_an_identity_rescale_or_a_sign() -> None:
    values = np.array([[10, 100, 128, 200]])
    assert pixels(made(values, bits=8)).tolist() == values.tolist()
    assert pixels(made(values, bits=8, RescaleSlope=1, RescaleIntercept=0)).tolist() == values.tolist()
    signed = np.array([[-128, -1, 0, 127]]).astype("<i2").view("<u2")
    assert pixels(made(signed, bits=8, PixelRepresentation=1)).tolist() == [[0, 127, 128, 255]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"PhotometricInterpretation": "RGB"}, "format"),
        ({"SamplesPerPixel": 3}, "format"),
        ({"NumberOfFrames": 2}, "multiframe"),
        ({"Rows": 60000, "Columns": 60000}, "too_large"),
        ({"Rows": 0}, "no_pixels"),
        ({"PixelData": b"\0\0"}, "undecodable"),
        ({"PhotometricInterpretation": None, "PixelData": None}, "no_pixels"),
        ({"HighBit": 15}, "format"),
        ({"WindowCenter": 5, "WindowWidth": 5, "VOILUTFunction": "FOO"}, "undecodable"),
        ({"VOILUTSequence": lut([0, 1], 10, 12, count=3)}, "undecodable"),
    ],
)
def test_what_is_no_single_grey_image_is_rejected_by_name(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        pixels(made(np.zeros((4, 4)), **change))


@pytest.mark.parametrize(
    ("syntax", "bits", "reason"),
    [
        ("1.2.840.10008.1.2.4.80", 8, "compression"),  # JPEG-LS
        ("1.2.840.10008.1.2.4.51", 12, "compression"),  # JPEG of 12 bits
        ("1.2.840.10008.1.2.4.100", 8, "compression"),  # MPEG2
        ("1.2.3.4.5", 8, "compression"),  # somebody's own
        ("1.2.840.10008.1.2.4.50", 8, "undecodable"),  # baseline JPEG, damaged
        ("1.2.840.10008.1.2.5", 8, "undecodable"),  # RLE, damaged
    ],
)
def test_a_compression_that_pydicom_alone_lacks_is_named_and_damage_of_one_that_it_has_is_damage(
    syntax: str, bits: int, reason: str
) -> None:
    with pytest.raises(ImageError, match=reason):
        pixels(compressed(b"\xff\xd8junk", syntax, (4, 4), bits))


def report(kind: str) -> bytes:
    """A DICOM file of a class that has no pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID, dataset.file_meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, kind
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.SOPInstanceUID, dataset.Modality = "1.2.3.4", "SR"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def test_a_dicomdir_and_a_report_have_no_pixels_and_only_the_first_is_a_directory() -> None:
    files = {
        "directory": report("1.2.840.10008.1.3.10"),
        "report": report("1.2.840.10008.5.1.4.1.1.88.11"),
        "image": made(np.zeros((4, 4))),
    }
    assert [name for name, data in files.items() if is_dicom_directory(data[:HEAD])] == ["directory"]
    assert all(is_dicom(data) for data in files.values())
    for name in ("directory", "report"):
        with pytest.raises(ImageError, match="no_pixels"):
            pixels(files[name])


def test_a_size_over_the_limit_is_refused_before_pixels_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(np.zeros((4, 5)))
    assert pixels(data, max_pixels=20).shape == (4, 5)
    monkeypatch.setattr("chexseg_ray.data.dicom._pixels", lambda _: pytest.fail("read"))
    with pytest.raises(ImageError, match="too_large"):
        pixels(data, max_pixels=19)


@pytest.mark.parametrize("before", [0, 2500], ids=["as usual", "behind a long id"])
def test_a_deflated_file_is_not_inflated(before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(made(np.zeros((4, 4))))
    at = data.index(b"1.2.840.10008.1.2.1\0") - 2
    data[at : at + 22] = (22).to_bytes(2, "little") + b"1.2.840.10008.1.2.1.99"
    at = data.index(b"\x02\0\x03\0UI") + 6  # Media Storage SOP Instance UID
    data[at : at + 10] = (8 + before).to_bytes(2, "little") + b"1.2.3.4\0" + b"1" * before
    length = int.from_bytes(data[140:144], "little")
    data[140:144] = (length + 2 + before).to_bytes(4, "little")
    monkeypatch.setattr("zlib.decompress", lambda *_: pytest.fail("inflated"))
    with pytest.raises(ImageError, match="format"):
        pixels(bytes(data))


def test_damaged_bytes_are_rejected_and_nothing_else_is_raised(rng: np.random.Generator) -> None:
    good = made(np.zeros((16, 16)), WindowCenter=500, WindowWidth=400, RescaleSlope=2, RescaleIntercept=1)
    for cut in (132, 200, len(good) - 3):
        with pytest.raises(ImageError):
            pixels(good[:cut])
    assert not is_dicom(b"\x89PNG")
    import warnings

    refused = 0
    for _ in range(1500):
        bad = bytearray(good)
        for place in rng.integers(132, len(bad) - 512, size=4):
            bad[place] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                grey = pixels(bytes(bad))
                assert grey.ndim == 2
                assert grey.dtype == np.uint8
            except ImageError:
                refused += 1
    assert refused > 300


def test_without_pydicom_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install pydicom"):
        pixels(b"\0" * 128 + b"DICM")
