"""Decoding and the letterbox."""

import io

import numpy as np
import pytest
from PIL import Image

from chexseg_ray.data.images import ImageError, content_box, decode_grey, letterbox, letterbox_mask, unletterbox


def png(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def grey(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (20, 30), dtype=np.uint8)


def test_grey_and_colour_pngs_decode_to_8_bit_grey(grey: np.ndarray) -> None:
    assert np.array_equal(decode_grey(png(Image.fromarray(grey))), grey)
    assert np.array_equal(decode_grey(png(Image.fromarray(np.stack([grey] * 3, -1)))), grey)
    assert np.array_equal(decode_grey(png(Image.fromarray(grey).convert("P"))), grey)
    rgba = np.dstack([np.stack([grey] * 3, -1), np.full_like(grey, 255)])
    assert np.array_equal(decode_grey(png(Image.fromarray(rgba))), grey)
    assert np.array_equal(decode_grey(png(Image.fromarray(grey.astype(np.uint16) * 257))), grey)


def test_exif_rotation_is_applied(grey: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_grey(png(Image.fromarray(grey), "JPEG", exif=exif, quality=100))
    assert turned.shape == (30, 20)
    assert np.abs(turned.astype(int) - np.rot90(grey, -1).astype(int)).mean() < 2


@pytest.mark.parametrize("reason", ["undecodable", "format", "too_large"])
def test_what_is_no_image_is_named(reason: str, grey: np.ndarray) -> None:
    good = png(Image.fromarray(grey))
    bombs = bytearray(good)
    bombs[16:24] = (30000).to_bytes(4, "big") * 2
    import zlib

    bombs[29:33] = zlib.crc32(bytes(bombs[12:29])).to_bytes(4, "big")
    cases = {
        "undecodable": [b"", b"<html>", good[: len(good) // 2], png(Image.fromarray(grey), "JPEG")[:-60]],
        "format": [png(Image.fromarray(grey), "GIF"), png(Image.fromarray(grey), "TIFF")],
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
