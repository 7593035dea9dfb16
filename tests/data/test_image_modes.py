"""Images of every mode and format, against references that are computed by hand (docs/faults.md 3 to 6)."""

import io
import struct
import zlib

import numpy as np
import pytest
from data.image_files import image_bytes
from PIL import Image

from chexseg_ray.data.images import ImageError, decode_grey, header_size
from chexseg_ray.data.xrays import decode_xray

LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture
def colours(rng: np.random.Generator) -> np.ndarray:
    """uint8 [24, 32, 3], of blocks that JPEG keeps."""
    return np.kron(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))


def is_near(found: np.ndarray, expected: np.ndarray, most: float) -> bool:
    return bool(np.abs(found.astype(float) - expected).max() <= most)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_black(mode: str, colours: np.ndarray) -> None:
    """By hand: luma times opacity. What lies below a transparent pixel has any value, often white."""
    opacity = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (24, 1))
    image = Image.fromarray(np.dstack([colours, opacity]))
    expected = colours @ LUMA * (opacity / 255)
    if mode != "RGBA":
        grey = Image.fromarray(colours).convert("L")
        image = Image.merge("LA", [grey, Image.fromarray(opacity)])
        expected = np.asarray(grey) * (opacity / 255)
    if mode == "PA":  # a palette whose entries have an opacity each
        indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
        image = Image.fromarray(indices).convert("P")
        image.putpalette([i for i in range(256) for _ in range(3)])
        data = image_bytes(image, transparency=bytes(range(255, -1, -1)))
        assert is_near(decode_grey(data), indices * ((255.0 - indices) / 255), 1.5)
        return
    assert is_near(decode_grey(image_bytes(image)), expected, 1.5)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_one_transparent_value_of_a_png_is_black(mode: str) -> None:
    """tRNS of a PNG without an opacity channel names one value that is transparent, such as a white rim."""
    grey = np.full((6, 8), 100, dtype=np.uint8)
    grey[0] = 255
    image = Image.fromarray(grey).convert(mode)
    found = decode_grey(image_bytes(image, transparency=255 if mode == "L" else (255, 255, 255)))
    assert (found[0] == 0).all()
    assert (found[1:] == 100).all()


def test_a_cmyk_jpeg_is_as_bright_as_its_rgb(colours: np.ndarray) -> None:
    """Ink is written inverted, as Adobe does; a reader that forgets this gives the negative."""
    ink = Image.fromarray(colours).convert("CMYK")
    values = np.asarray(ink).astype(float) / 255
    expected = 255 * ((1 - values[..., :3]) * (1 - values[..., 3:])) @ LUMA
    data = image_bytes(ink, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data[:200]
    assert is_near(decode_grey(data), expected, 4)
    assert is_near(decode_grey(data), colours @ LUMA, 4)


def test_a_palette_is_looked_up() -> None:
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(indices).convert("P")
    image.putpalette([255 - i for i in range(256) for _ in range(3)])
    assert np.array_equal(decode_grey(image_bytes(image)), 255 - indices)


def test_16_bits_keep_their_order_and_ends() -> None:
    deep = np.array([[0, 256, 257, 32768, 65535]], dtype=np.uint16)
    assert decode_grey(image_bytes(Image.fromarray(deep))).tolist() == [[0, 1, 1, 128, 255]]


FITS = b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(80) + b"END".ljust(2720)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


def others() -> dict[str, bytes]:
    image = Image.fromarray(np.zeros((4, 4), dtype=np.uint8))
    made = {kind: image_bytes(image, kind) for kind in ("GIF", "TIFF", "BMP", "WEBP")}
    return made | {"FITS": FITS, "EPS": EPS, "SVG": SVG, "SVG with a head": b"<?xml version='1.0'?>" + SVG}


@pytest.mark.parametrize("kind", others())
def test_other_formats_are_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file is called: no plugin of Pillow, and no Ghostscript, ever sees them."""
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("opened"))
    for decode in (decode_grey, decode_xray):
        with pytest.raises(ImageError) as caught:
            decode(others()[kind])
        assert caught.value.reason == "format"


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (40, 50)])
@pytest.mark.parametrize("value", [0, 255])
def test_an_image_of_one_pixel_or_of_one_grey_is_decoded_and_noted(shape: tuple[int, int], value: int) -> None:
    grey = np.full(shape, value, dtype=np.uint8)
    found = decode_xray(image_bytes(Image.fromarray(grey)))
    assert np.array_equal(found.grey, grey)
    assert found.notes == ("hardly any grey values",)


def bomb(side: int) -> bytes:
    """A valid PNG of black and white, `side` pixels a side; Pillow would make a byte of each of its bits."""
    rows = zlib.compressobj(9)
    content = b"".join(rows.compress(bytes(side // 8 + 1)) for _ in range(side)) + rows.flush()
    head = struct.pack(">LLBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", content), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data)) for name, data in chunks
    )


def test_a_png_that_would_inflate_costs_no_memory() -> None:
    import resource

    data = bomb(30_000)
    assert len(data) < 120_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match="too_large"):
        decode_xray(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_header_of_too_many_pixels_has_no_size(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow decodes a whole PNG to look for its EXIF, so the size is judged before."""
    data = image_bytes(Image.fromarray(np.zeros((20, 30), dtype=np.uint8)), kind)
    monkeypatch.setattr("chexseg_ray.data.images.MAX_PIXELS", 600)
    assert header_size(io.BytesIO(data)) == (20, 30)
    monkeypatch.setattr("chexseg_ray.data.images.MAX_PIXELS", 599)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    assert header_size(io.BytesIO(data)) is None
