"""Decoding and the letterbox."""

import io
import warnings
import zlib

import numpy as np
import pytest
from data.image_files import image_bytes
from PIL import Image, ImageOps, TiffImagePlugin

from chexseg_ray.data.images import (
    ImageError,
    content_box,
    decode_grey,
    header_size,
    letterbox,
    letterbox_mask,
    unletterbox,
)


@pytest.fixture
def grey(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (20, 30), dtype=np.uint8)


def test_grey_and_colour_pngs_decode_to_8_bit_grey(grey: np.ndarray) -> None:
    assert np.array_equal(decode_grey(image_bytes(Image.fromarray(grey))), grey)
    assert np.array_equal(decode_grey(image_bytes(Image.fromarray(np.stack([grey] * 3, -1)))), grey)
    assert np.array_equal(decode_grey(image_bytes(Image.fromarray(grey).convert("P"))), grey)
    rgba = np.dstack([np.stack([grey] * 3, -1), np.full_like(grey, 255)])
    assert np.array_equal(decode_grey(image_bytes(Image.fromarray(rgba))), grey)
    assert np.array_equal(decode_grey(image_bytes(Image.fromarray(grey.astype(np.uint16) * 257))), grey)


def test_every_value_of_16_bits_is_rounded_to_8() -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(decode_grey(image_bytes(Image.fromarray(deep))), np.rint(deep / 257.0))


def turned_exif(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_as_pillow_does(orientation: int, grey: np.ndarray) -> None:
    data = image_bytes(Image.fromarray(grey), exif=turned_exif(orientation))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode_grey(data), expected)
    assert header_size(io.BytesIO(data)) == expected.shape


@pytest.mark.parametrize(
    ("tag", "value"), [(0x011A, "72"), (0x0100, "30"), (0x8298, 1.5)], ids=["XResolution", "ImageWidth", "Copyright"]
)
def test_exif_of_the_wrong_type_beside_a_rotation_does_not_matter(tag: int, value: object, grey: np.ndarray) -> None:
    typed = TiffImagePlugin.ImageFileDirectory_v2()
    typed[0x0112], typed.tagtype[tag], typed[tag] = 6, 2 if isinstance(value, str) else 11, value
    stream = io.BytesIO()
    typed.save(stream)
    data = image_bytes(Image.fromarray(grey), "JPEG", exif=b"Exif\0\0" + stream.getvalue(), quality=100)
    turned = decode_grey(data)
    assert turned.shape == header_size(io.BytesIO(data)) == (30, 20)
    assert np.abs(turned.astype(int) - np.rot90(grey, -1).astype(int)).mean() < 2


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Change four bytes of a header, and correct a PNG's checksums so that the decoder reads the damage."""
    bad, at = bytearray(data), 8
    for place in rng.integers(4, min(260, len(bad)), size=4):
        bad[place] = rng.integers(256)
    while data.startswith(b"\x89PNG") and (end := at + 8 + int.from_bytes(bad[at : at + 4], "big")) + 4 <= len(bad):
        bad[end : end + 4] = zlib.crc32(bytes(bad[at + 4 : end])).to_bytes(4, "big")
        at = end + 4
    return bytes(bad)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "deep PNG", "palette PNG"])
def test_damaged_bytes_are_rejected_and_nothing_else_is_raised(
    kind: str, grey: np.ndarray, rng: np.random.Generator
) -> None:
    exif = turned_exif()
    exif[0x011A], exif[0x0100], exif[0x010F] = 72.0, 30, "maker"
    image = {
        "deep PNG": Image.fromarray(grey.astype(np.uint16) * 200),
        "palette PNG": Image.fromarray(grey).convert("P"),
    }.get(kind)
    good = image_bytes(image or Image.fromarray(grey), kind.rsplit(maxsplit=1)[-1], exif=exif)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF
        for _ in range(600):
            bad = damaged(good, rng)
            size = header_size(io.BytesIO(bad))
            try:
                assert decode_grey(bad).shape == size
            except ImageError:
                refused += 1
    assert 30 < refused < 600


def test_a_large_image_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch, grey: np.ndarray) -> None:
    data = image_bytes(Image.fromarray(grey))
    assert decode_grey(data, max_pixels=600).shape == (20, 30)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="too_large"):
        decode_grey(data, max_pixels=599)


@pytest.mark.parametrize("side", [9_900, 12_000, 30_000])
def test_sizes_that_pillow_warns_of_are_ours_to_judge(side: int) -> None:
    header = side.to_bytes(4, "big") * 2 + bytes((8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
        for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    with pytest.raises(ImageError, match="too_large"):
        decode_grey(data, max_pixels=40_000_000)
    assert header_size(io.BytesIO(data)) is None


@pytest.mark.parametrize("reason", ["undecodable", "format", "too_large"])
def test_what_is_no_image_is_named(reason: str, grey: np.ndarray) -> None:
    good = image_bytes(Image.fromarray(grey))
    bombs = bytearray(good)
    bombs[16:24] = (30000).to_bytes(4, "big") * 2
    bombs[29:33] = zlib.crc32(bytes(bombs[12:29])).to_bytes(4, "big")
    cases = {
        "undecodable": [b"", b"<html>", good[: len(good) // 2], image_bytes(Image.fromarray(grey), "JPEG")[:-60]],
        "format": [image_bytes(Image.fromarray(grey), "GIF"), image_bytes(Image.fromarray(grey), "TIFF")],
        "too_large": [bytes(bombs)],
    }
    for data in cases[reason]:
        with pytest.raises(ImageError) as caught:
            decode_grey(data)
        assert caught.value.reason == reason


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (400, 1), (96, 96), (97, 61), (320, 390), (33, 100)])
def test_the_letterbox_keeps_content_in_its_box_and_zeros_outside(shape: tuple[int, int]) -> None:
    box = content_box(*shape, 64)
    out = letterbox(np.full(shape, 200, dtype=np.uint8), 64)
    assert max(box.height, box.width) == 64
    assert (out[box.rows, box.columns] == 200).all()
    assert out.sum() == 200 * box.height * box.width
    assert letterbox_mask(np.ones(shape, dtype=bool), 64).sum() == box.height * box.width
    back = unletterbox(np.stack([out.astype(np.float32)] * 2), *shape)
    assert back.shape == (2, *shape)
    assert np.allclose(back, 200)


def test_a_mask_pixel_is_set_when_half_of_its_area_is() -> None:
    mask = np.zeros((128, 128), dtype=bool)
    mask[:, :65] = True  # the 33rd column of 64 is half covered
    assert letterbox_mask(mask, 64).sum(axis=1).tolist() == [33] * 64
    mask[1::2, 64] = False  # now a quarter
    assert letterbox_mask(mask, 64).sum(axis=1).tolist() == [32] * 64
