"""One door for all formats: the guard for images of nearly one grey, and decoders' warnings as notes."""

import logging
import warnings
from collections.abc import Callable

import numpy as np
import pydicom
import pytest
from data.dicom_files import made
from data.image_files import image_bytes

from chexseg_ray.data.images import FEW_GREYS, Decoded, has_few_greys
from chexseg_ray.data.xrays import WARNED, count_notes, decode_xray, note_lines, xray_size


@pytest.fixture
def deep(rng: np.random.Generator) -> np.ndarray:
    """Values of 12 bits."""
    return rng.integers(0, 4096, (20, 30), dtype=np.uint16)


def test_12_bits_in_16_are_named_and_decoded_as_before(deep: np.ndarray) -> None:
    narrow, full = decode_xray(image_bytes(deep)), decode_xray(image_bytes(deep * 16))
    assert narrow.notes == (FEW_GREYS,)
    assert narrow.grey.max() <= 16
    assert full.notes == ()


@pytest.mark.parametrize(
    "make",
    [
        lambda grey: image_bytes(grey),
        lambda grey: image_bytes(grey, "JPEG"),
        lambda grey: made(grey.astype(np.uint16), bits=8),
    ],
    ids=["PNG", "JPEG", "DICOM"],
)
def test_every_format_is_guarded(make: Callable[[np.ndarray], bytes]) -> None:
    ramp = np.arange(200, dtype=np.uint8).repeat(8).reshape(40, 40)
    assert decode_xray(make(ramp)).notes == ()
    assert decode_xray(make(100 + ramp // 20)).notes == (FEW_GREYS,)


@pytest.mark.parametrize(("step", "few"), [(16, True), (17, False)])
def test_the_limit_is_a_span_of_16_greys_between_the_percentiles(step: int, few: bool) -> None:
    grey = np.full((10, 100), 50, dtype=np.uint8)
    grey[:5] += np.uint8(step)
    grey[0, :5], grey[9, :5] = 255, 0  # half a per cent beyond each percentile
    assert has_few_greys(grey) is few
    assert has_few_greys(np.zeros((1, 1), np.uint8))


def test_the_size_of_each_format_is_in_its_header(deep: np.ndarray) -> None:
    for data in (image_bytes(deep), image_bytes((deep // 16).astype(np.uint8), "JPEG"), made(deep)):
        assert xray_size(data) == (20, 30)
    assert xray_size(made(deep)[:600]) == (20, 30), "a header is enough"
    assert xray_size(made(deep, Rows=20_000, Columns=20_000)) is None, "over the limit, as for a PNG"
    assert xray_size(b"no image") is None


def test_warnings_and_log_messages_become_notes_and_nothing_is_printed(
    deep: np.ndarray,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def noisy(_: bytes, __: int) -> np.ndarray:
        warnings.warn("a tag is odd\n" + "x" * 1000, stacklevel=1)
        logging.getLogger("pydicom").warning("a tag is %s", "late")
        logging.getLogger("PIL.PngImagePlugin").warning("a chunk is late")
        return (deep // 16).astype(np.uint8)

    monkeypatch.setattr("chexseg_ray.data.xrays.decode_grey", noisy)
    handlers = [logging.getLogger(name).handlers[:] for name in ("pydicom", "PIL")]
    notes = decode_xray(b"a PNG").notes
    assert [note.partition(": ")[0] for note in notes] == [WARNED] * 3
    assert f"{WARNED}: a tag is late" in notes
    assert f"{WARNED}: a chunk is late" in notes
    assert max(map(len, notes)) < 200
    assert not any("\n" in note for note in notes)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == [], "a handler of the root gets none"
    assert handlers == [logging.getLogger(name).handlers[:] for name in ("pydicom", "PIL")]


def test_a_dicom_file_that_pydicom_warns_of_is_decoded_with_a_note(
    deep: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    data = made(deep, SOPInstanceUID="1.2.3.4").replace(b"1.2.3.4\0", b"1.2.x.4\0")
    data = data[:-1] + b"\0" * 101  # more pixels than Rows x Columns
    length = data.index(b"\xe0\x7f\x10\0") + 8
    data = data[:length] + (1300).to_bytes(4, "little") + data[length + 4 :]
    image = decode_xray(data)
    assert isinstance(image, Decoded)
    assert image.grey.shape == (20, 30)
    assert any(note.startswith(f"{WARNED}: ") for note in image.notes)
    assert capfd.readouterr() == ("", "")
    assert pydicom.config.logger.propagate


def test_notes_are_counted_by_kind_and_images_named() -> None:
    notes = [(f"i{number}", FEW_GREYS) for number in range(12)]
    notes += [("i0", f"{WARNED}: one"), ("i0", f"{WARNED}: two"), ("i1", f"{WARNED}: one")]
    counts = count_notes(notes)
    assert counts == {
        FEW_GREYS: {"images": 12, "first": [f"i{number}" for number in range(10)]},
        WARNED: {"images": 2, "first": ["i0 (one)", "i1 (one)"]},
    }
    assert note_lines(counts) == [
        f"{FEW_GREYS}: 12 images (i0, i1, i2, ...)",
        f"{WARNED}: 2 images (i0 (one), i1 (one))",
    ]
    assert count_notes([]) == {}
