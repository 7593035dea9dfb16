"""Decode an X-ray to 8-bit grey, and the one letterbox geometry of the study with its inverse."""

import io
import math
import struct
import zlib
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

MAX_PIXELS = 100_000_000  # the largest CheXpert image has 12 million
# what decoders raise on bytes that are not as the standard says
DAMAGE = (
    AttributeError,
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
_TURNS: dict[object, Image.Transpose] = {  # EXIF's Orientation, and how to undo it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS = (5, 6, 7, 8)  # those that exchange height and width
_EIGHT_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)  # 0..65535 to 0..255, rounded


class ImageError(ValueError):
    """Why one file's bytes are no usable image; `reason` is the code that stands in rejects.parquet."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_grey(data: bytes, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode JPEG or PNG bytes.

    Args:
        data: the whole file.
        max_pixels: the most that an image may have.

    Returns:
        uint8 [height, width], 0 to 255, EXIF rotation applied, 16-bit scaled linearly, colour to luma (ITU-R 601).

    Raises:
        ImageError: `undecodable`, `format` (neither JPEG nor PNG) or `too_large` (over `max_pixels`, before decoding).
    """
    if not data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        raise ImageError("format" if _is_image(data) else "undecodable")
    try:
        with _open(io.BytesIO(data)) as image:
            if image.width * image.height > max_pixels:
                raise ImageError("too_large")
            image.load()
            turn = _TURNS.get(_orientation(image))  # not ImageOps.exif_transpose: it writes all EXIF anew, and fails where a tag has another type
            return _grey(image if turn is None else image.transpose(turn))
    except ImageError:
        raise
    except DAMAGE as error:
        raise ImageError("undecodable") from error


def header_size(stream: IO[bytes]) -> tuple[int, int] | None:
    """(height, width) of a JPEG or PNG after EXIF rotation, from its header; None when it has no readable one, or over 100 million pixels."""
    try:
        with _open(stream) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            return (image.width, image.height) if _orientation(image) in _SWAPS else (image.height, image.width)
    except DAMAGE:
        return None


def _open(stream: IO[bytes]) -> JpegImageFile | PngImageFile:
    """By Pillow's class for the format: Image.open warns of images that it finds large, and lets other formats in."""
    first = stream.read(1)
    stream.seek(0)
    return JpegImageFile(stream) if first == b"\xff" else PngImageFile(stream)


def _orientation(image: Image.Image) -> object:
    return image.getexif().get(0x0112, 1)


def _is_image(data: bytes) -> bool:
    return data.startswith((b"GIF8", b"II*\0", b"MM\0*", b"SIMPLE", b"%!PS", b"<svg", b"<?xml", b"BM", b"RIFF"))


def _grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16-bit PNG
        scaled: npt.NDArray[np.uint8] = _EIGHT_BITS[np.asarray(image)]
        return scaled
    if image.mode in ("P", "PA", "RGBA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return np.asarray(image.convert("L"), dtype=np.uint8)


@dataclass(frozen=True)
class ContentBox:
    """Where a letterboxed image's content lies: rows top..top+height, columns left..left+width, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.left + self.width)

    def on_grid(self, size: int, grid: int) -> "ContentBox":
        """The cells, of grid x grid over size x size pixels, whose centre lies in the box; at least one a side."""
        top, height = _cells(self.top, self.height, size / grid)
        left, width = _cells(self.left, self.width, size / grid)
        return ContentBox(top, left, height, width)


def _cells(start: int, length: int, pixels: float) -> tuple[int, int]:
    """The first cell and the number of cells whose centre lies in [start, start + length)."""
    first, end = (math.ceil(edge / pixels - 0.5) for edge in (start, start + length))
    return (first, end - first) if end > first else (int((start + length / 2) // pixels), 1)


def content_box(height: int, width: int, size: int) -> ContentBox:
    """The box of an image of height x width pixels after letterboxing to size x size: long side to size, centred."""
    scale = size / max(height, width)
    inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
    return ContentBox((size - inner_height) // 2, (size - inner_width) // 2, inner_height, inner_width)


def letterbox(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Resize uint8 [h, w] bilinearly (with antialiasing) into the centre of zeros: uint8 [size, size]."""
    return _into_box(image, size, Image.Resampling.BILINEAR)


def letterbox_mask(mask: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    """Letterbox a mask bool [h, w]; a pixel is set when at least half of its area was."""
    return _into_box(mask.astype(np.uint8) * np.uint8(255), size, Image.Resampling.BOX) >= 128


def _into_box(array: npt.NDArray[np.uint8], size: int, resample: Image.Resampling) -> npt.NDArray[np.uint8]:
    box = content_box(array.shape[0], array.shape[1], size)
    out = np.zeros((size, size), dtype=np.uint8)
    out[box.rows, box.columns] = np.asarray(Image.fromarray(array).resize((box.width, box.height), resample))
    return out


def unletterbox(scores: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """The inverse for scores float32 [K, size, size]: cut the content out and resize it bilinearly to [K, height, width]."""
    box = content_box(height, width, scores.shape[-1])
    inner = scores[:, box.rows, box.columns]
    return np.stack([np.asarray(Image.fromarray(s).resize((width, height), Image.Resampling.BILINEAR)) for s in inner])
