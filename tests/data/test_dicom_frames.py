"""Compressed frames that would inflate beyond their image are refused, and pydicom is not asked to decode them."""

import io
import struct
import tracemalloc

import numpy as np
import pydicom
import pytest
from data.dicom_files import compressed, pixels
from data.image_files import image_bytes
from pydicom.encaps import encapsulate

from chexseg_ray.data.dicom import dicom_size
from chexseg_ray.data.images import ImageError
from chexseg_ray.data.xrays import decode_xray

RLE, JPEG, JPEG_2000 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"


def rle_frame(*segments: bytes) -> bytes:
    offsets = [64 + sum(map(len, segments[:place])) for place in range(len(segments))]
    return struct.pack("<16L", len(segments), *offsets, *[0] * (15 - len(segments))) + b"".join(segments)


@pytest.fixture
def grey(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (20, 30), dtype=np.uint8)


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when pixels are decoded."""
    monkeypatch.setattr("chexseg_ray.data.dicom._pixels", lambda _: pytest.fail("decoded"))


def runs(value: int, number: int) -> bytes:
    """That many bytes of one value in RLE runs of up to 128."""
    rest = number % 128
    return bytes([129, value]) * (number // 128) + (bytes([257 - rest, value]) if rest > 1 else b"")


def test_what_fits_is_decoded(grey: np.ndarray) -> None:
    literal = b"".join(bytes([29]) + row.tobytes() for row in grey)
    assert np.array_equal(pixels(compressed(rle_frame(literal), RLE, grey.shape)), grey)
    assert np.array_equal(pixels(compressed(rle_frame(runs(7, 600)), RLE, grey.shape)), np.full(grey.shape, 7))
    padded = decode_xray(compressed(rle_frame(runs(7, 600) + runs(7, 100)), RLE, grey.shape))
    assert (padded.grey == 7).all()
    assert "padding" in padded.notes[-1], "up to one run more, as some encoders write, is a note"
    for kind, syntax in (("JPEG", JPEG), ("JPEG2000", JPEG_2000)):
        found = pixels(compressed(image_bytes(grey, kind), syntax, grey.shape))
        assert found.shape == grey.shape
    codestream = image_bytes(grey, "JPEG2000").partition(b"jp2c")[2]
    assert np.array_equal(pixels(compressed(codestream, JPEG_2000, grey.shape)), grey)


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("segments", [[runs(7, 100_000_000)], [runs(7, 600), runs(7, 2_000_000)]])
def test_an_rle_segment_that_inflates_beyond_the_frame_is_refused(segments: list[bytes]) -> None:
    data = compressed(rle_frame(*segments), RLE, (20, 30))
    tracemalloc.start()
    with pytest.raises(ImageError, match="undecodable"):
        pixels(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * len(data)
    assert peak < 40_000_000


def with_size(frame: bytes, height: int, width: int) -> bytes:
    """A JPEG whose frame header has another size."""
    at = frame.index(b"\xff\xc0") + 5
    return frame[:at] + struct.pack(">HH", height, width) + frame[at + 4 :]


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize(
    ("height", "width", "reason"), [(21, 30, "undecodable"), (2000, 2000, "undecodable"), (65000, 65000, "too_large")]
)
def test_a_jpeg_larger_than_its_header_is_refused(height: int, width: int, reason: str, grey: np.ndarray) -> None:
    frame = with_size(image_bytes(grey, "JPEG"), height, width)
    for bad in (frame, frame[:2] + b"junk" + frame[2:], frame[:2] + b"\xff\xff\xff\xd0" + frame[2:]):
        with pytest.raises(ImageError, match=reason):
            pixels(compressed(bad, JPEG, grey.shape))


@pytest.mark.usefixtures("undecoded")
def test_a_second_frame_header_and_one_of_jpeg_ls_count_too(grey: np.ndarray) -> None:
    second = b"\xff\xc1\0\x08\x08" + struct.pack(">HH", 60000, 60000) + b"\0"
    frame = image_bytes(grey, "JPEG")
    at = frame.index(b"\xff\xda")
    for bad in (frame[:at] + second + frame[at:], b"\xff\xd8" + second.replace(b"\xff\xc1", b"\xff\xf7") + bytes(20)):
        with pytest.raises(ImageError, match="too_large"):
            pixels(compressed(bad, JPEG, grey.shape))


@pytest.mark.usefixtures("undecoded")
def test_a_jpeg_2000_larger_than_its_header_is_refused(grey: np.ndarray) -> None:
    frame = image_bytes(grey, "JPEG2000")
    at = frame.index(b"\xff\x4f\xff\x51") + 8
    bad = frame[:at] + struct.pack(">LL", 50_000, 50_000) + frame[at + 8 :]
    decoy = struct.pack(">L", 8 + 5000) + b"free" + frame[at - 8 :][:5000].ljust(5000, b"\0")
    for large in (bad, bad[at - 8 :], bad[:12] + decoy + bad[12:]):
        with pytest.raises(ImageError, match="too_large"):
            pixels(compressed(large, JPEG_2000, grey.shape))


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("extended", [False, True])
def test_a_second_frame_beside_a_header_of_one_is_not_decoded(extended: bool, grey: np.ndarray) -> None:
    frame = image_bytes(grey, "JPEG")
    frame += bytes(len(frame) % 2)
    dataset = pydicom.dcmread(io.BytesIO(compressed(frame, JPEG, grey.shape)))
    if extended:
        bomb = with_size(frame, 65000, 65000)
        dataset.PixelData = encapsulate([frame, bomb], has_bot=False)
        dataset.ExtendedOffsetTable = struct.pack("<Q", 8 + len(frame))
        dataset.ExtendedOffsetTableLengths = struct.pack("<Q", len(bomb))
    else:
        dataset.PixelData = encapsulate([frame] * 3)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset)
    with pytest.raises(ImageError, match="too_large" if extended else "multiframe"):
        pixels(stream.getvalue())


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_jp2_box_without_length_is_refused_before_pydicom_looks_for_its_end(length: int, grey: np.ndarray) -> None:
    frame = image_bytes(grey, "JPEG2000")
    assert frame.startswith(b"\0\0\0\x0cjP  ")
    bad = frame[:12] + length.to_bytes(4, "big") + frame[16:]
    with pytest.raises(ImageError, match="undecodable"):
        pixels(compressed(bad, JPEG_2000, grey.shape))


def test_damaged_frames_are_rejected_and_nothing_else_is_raised(grey: np.ndarray, rng: np.random.Generator) -> None:
    for frame, syntax in ((image_bytes(grey, "JPEG"), JPEG), (rle_frame(runs(7, 600)), RLE)):
        refused = 0
        for _ in range(100):
            bad = bytearray(frame)
            for place in rng.integers(0, len(bad), 4):
                bad[place] = rng.integers(256)
            try:
                decode_xray(compressed(bytes(bad[: rng.integers(2, len(bad))]), syntax, grey.shape))
            except ImageError:
                refused += 1
        assert refused > 50


def test_a_deflated_file_has_no_size_that_would_cost_its_inflation(
    grey: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zlib.decompress", lambda *_: pytest.fail("inflated"))
    assert dicom_size(compressed(b"xx", "1.2.840.10008.1.2.1.99", grey.shape)) is None
