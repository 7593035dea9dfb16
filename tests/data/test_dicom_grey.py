"""Tables, windows and inversion of DICOM images, and files that viewers read although something is missing."""

import io
from typing import Any

import numpy as np
import pydicom
import pytest
from data.dicom_files import lut, made, pixels
from pydicom.dataset import Dataset

from chexseg_ray.data.dicom import decode_dicom, is_dicom
from chexseg_ray.data.images import ImageError

VALUES = np.arange(0, 4096, 16).reshape(16, 16)
SQUARE = (np.arange(4096) ** 2) // 4096  # a curve 0..4094, as entries of 12 bits


def words(entries: np.ndarray) -> bytes:
    return entries.astype("<u2").tobytes()


def test_a_table_that_states_more_bits_than_it_has_is_shown_by_its_own() -> None:
    narrow = decode_dicom(made(VALUES, VOILUTSequence=lut(words(SQUARE), 0, 16, 4096)))
    right = decode_dicom(made(VALUES, VOILUTSequence=lut(words(SQUARE), 0, 12, 4096)))
    assert np.array_equal(narrow.grey, right.grey)
    assert narrow.grey.max() > 245
    assert right.notes == ()
    assert len(narrow.notes) == 1
    assert "VOI LUT" in narrow.notes[0]
    wide = decode_dicom(made(VALUES, VOILUTSequence=lut(words(SQUARE), 0, 8, 4096)))
    assert np.array_equal(wide.grey, right.grey), "and one that states fewer"


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("count", [4096, 4095])
def test_entries_of_8_bits_may_lie_in_bytes_or_words(count: int, order: str) -> None:
    entries = (SQUARE[:count] // 16).astype(np.uint8)
    packed = entries.tobytes() + b"\0" * (count % 2)
    expected = entries[np.minimum(VALUES, count - 1)]
    for stored in (packed, words(entries)):
        data = made(VALUES, VOILUTSequence=lut(stored, 0, 8, count))
        if order == "big":
            dataset = pydicom.dcmread(io.BytesIO(data))
            item, swapped = dataset.VOILUTSequence[0], np.frombuffer(stored, "<u2").astype(">u2").tobytes()
            item.LUTData = swapped
            dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
            stream = io.BytesIO()
            pydicom.dcmwrite(stream, dataset, implicit_vr=False, little_endian=False, force_encoding=True)
            data = stream.getvalue()
        assert np.array_equal(pixels(data), expected)


def test_a_first_value_below_0_and_values_beyond_the_table() -> None:
    table = lut([0, 1000, 4095], 65536 - 10, 12)
    data = made(np.array([[0, 90, 91, 92, 500]]), VOILUTSequence=table, RescaleSlope=1, RescaleIntercept=-100)
    assert pixels(data).tolist() == [[0, 0, 62, 255, 255]]


def test_a_modality_lut_is_looked_up_before_the_window() -> None:
    table, window = lut([0, 1000, 2000, 4000], 0, 16), {"WindowCenter": 2000.5, "WindowWidth": 4001}
    data = made(np.array([[0, 1, 2, 3]]), ModalityLUTSequence=table, **window)
    assert pixels(data).tolist() == [[0, 64, 128, 255]]


@pytest.mark.parametrize("empty", [[], [Dataset()]], ids=["no item", "an empty item"])
def test_an_empty_table_beside_a_window_does_not_matter(empty: list[Dataset]) -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    with_empty = decode_dicom(made(VALUES, VOILUTSequence=pydicom.Sequence(empty), **window))
    assert np.array_equal(with_empty.grey, pixels(made(VALUES, **window)))
    alone = pixels(made(VALUES, VOILUTSequence=pydicom.Sequence(empty)))
    assert np.array_equal(alone, pixels(made(VALUES)))


@pytest.mark.parametrize("window", [(-5000, 100), (9000, 100), (2048, 65536)], ids=["below", "above", "too wide"])
def test_a_window_that_leaves_nothing_gives_way_to_the_pixels_own_range(window: tuple[float, float]) -> None:
    image = decode_dicom(made(VALUES, WindowCenter=window[0], WindowWidth=window[1]))
    own = decode_dicom(made(VALUES))
    assert np.array_equal(image.grey, own.grey)
    assert own.notes == ()
    assert len(image.notes) == 1
    assert "own range" in image.notes[0]


def test_a_window_of_12_bits_left_over_on_8_and_a_table_of_zeros_give_way_too() -> None:
    eight = (VALUES // 16).astype(np.uint16)
    for more in ({"WindowCenter": 2048, "WindowWidth": 4096}, {"VOILUTSequence": lut([0] * 256, 0, 8)}):
        image = decode_dicom(made(eight, bits=8, **more))
        assert np.array_equal(image.grey, eight)
        assert "own range" in image.notes[-1]
    flat = decode_dicom(made(np.full((4, 4), 7), WindowCenter=2048, WindowWidth=4096))
    assert flat.notes == (), "whose own range has no more"


def test_padding_counts_neither_for_nor_against_a_window() -> None:
    values = VALUES.copy()
    values[:8] = 0
    good = decode_dicom(made(values, PixelPaddingValue=0, WindowCenter=3000, WindowWidth=2001))
    assert good.notes == ()
    bad = decode_dicom(made(values, PixelPaddingValue=0, WindowCenter=1000, WindowWidth=100))
    assert "own range" in bad.notes[0]
    assert bad.grey[8:].min() == 0
    assert bad.grey.max() == 255
    assert not bad.grey[:8].any()


@pytest.mark.parametrize(
    ("colour", "shape", "inverted", "noted"),
    [
        ("MONOCHROME1", None, True, False),
        ("MONOCHROME2", None, False, False),
        ("MONOCHROME1", "INVERSE", True, False),
        ("MONOCHROME2", "IDENTITY", False, False),
        ("MONOCHROME2", "INVERSE", True, True),
        ("MONOCHROME1", "IDENTITY", True, True),
    ],
)
def test_what_inverts_an_image(colour: str, shape: str | None, inverted: bool, noted: bool) -> None:
    more = {} if shape is None else {"PresentationLUTShape": shape}
    image, plain = decode_dicom(made(VALUES, colour, **more)), pixels(made(VALUES))
    assert np.array_equal(image.grey, 255 - plain if inverted else plain)
    assert len(image.notes) == noted


def test_a_decimal_comma_is_a_decimal_point() -> None:
    data = made(VALUES, WindowCenter="2048.5", WindowWidth="3000.0", RescaleSlope="1.5", RescaleIntercept="10.0")
    assert np.array_equal(pixels(data.replace(b"2048.5", b"2048,5").replace(b"3000.0", b"3000,0")), pixels(data))
    assert np.array_equal(pixels(data.replace(b"1.5", b"1,5").replace(b"10.0", b"10,0")), pixels(data))


def bare(data: bytes, implicit: bool) -> bytes:
    """A file's data set alone, without preamble and meta header."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    del dataset.file_meta
    dataset.preamble = None
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, implicit_vr=implicit, little_endian=True)
    return stream.getvalue()


def without_syntax(data: bytes) -> bytes:
    """A file whose meta header does not name the transfer syntax."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    del dataset.file_meta.TransferSyntaxUID
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, implicit_vr=False, little_endian=True)
    return stream.getvalue()


@pytest.mark.parametrize("implicit", [False, True])
def test_a_file_without_meta_header_is_known_and_read(implicit: bool) -> None:
    data = made(VALUES, WindowCenter=2048, WindowWidth=4096)
    headless = bare(data, implicit)
    assert headless.startswith(b"\x08\0")
    assert is_dicom(headless[:1024])
    assert np.array_equal(pixels(headless), pixels(data))


def test_a_file_without_transfer_syntax_is_read() -> None:
    data = made(VALUES)
    lacking = without_syntax(data)
    assert b"1.2.840.10008.1.2.1\0" not in lacking
    assert np.array_equal(pixels(lacking), pixels(data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08",
        b"\x08\0\x05\0text",
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        b"\xff\xd8\xff\xe0" + bytes(200),
        bytes(2000),
    ],
)
def test_other_bytes_are_no_dicom_file(data: bytes) -> None:
    assert not is_dicom(data)


def change(more: dict[str, Any]) -> bytes:
    return made(VALUES, **more)


SECONDARY, MR, RAW_DX = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("7", "4", "1.1.1"))


@pytest.mark.parametrize(
    ("more", "allowed"),
    [
        ({"Modality": "MR"}, ["MR"]),
        ({"Modality": "OT"}, ["OT"]),
        ({"PresentationIntentType": "FOR PROCESSING"}, ["FOR PROCESSING"]),
        ({"PresentationIntentType": "FOR PROCESSING", "Modality": "MG"}, ["MG", "FOR PROCESSING"]),
        ({"SOPClassUID": RAW_DX}, ["FOR PROCESSING"]),
    ],
)
def test_what_is_no_x_ray_or_raw_data_is_rejected_unless_allowed(more: dict[str, Any], allowed: list[str]) -> None:
    for some in (allowed[1:], ["CT"]):
        with pytest.raises(ImageError, match=r"^modality$"):
            decode_dicom(change(more), allowed=some)
    assert decode_dicom(change(more), allowed=allowed).notes == ()


@pytest.mark.parametrize("modality", ["CR", "DX", "RF", "XA"])
def test_x_rays_pass(modality: str) -> None:
    assert decode_dicom(change({"Modality": modality, "PresentationIntentType": "FOR PRESENTATION"})).notes == ()


@pytest.mark.parametrize("absent", [None, ""])
def test_without_a_modality_the_class_decides(absent: str | None) -> None:
    for kind in (SECONDARY, "1.2.840.10008.5.1.4.1.1.1", "1.2.3"):
        assert "no Modality" in decode_dicom(change({"Modality": absent, "SOPClassUID": kind})).notes[0]
    with pytest.raises(ImageError, match="modality"):
        decode_dicom(change({"Modality": absent, "SOPClassUID": MR}))
