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
FEW_GREYS = "hardly any grey values"  # the note of an image that `has_few_greys`
_FEW = 16  # of 255, from the 1st to the 99th percentile: 12-bit values in a 16-bit file span 15.9, rounded 16
# what decoders raise on bytes that break their format's standard
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
# EXIF's Orientation, and the transposition that undoes it
_UNDO_ORIENTATION: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # the orientations that exchange height and width
_EIGHT_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)  # 0..65535 to 0..255, rounded


class ImageError(ValueError):
    """A file's bytes are not a usable image.

    Args:
        reason: the code of the cause, which rejects.parquet lists, such as `undecodable`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Decoded:
    """An X-ray as 8-bit grey.

    Args:
        grey: uint8 [height, width].
        notes: what a user should know about the image, a sentence each; the part before a colon names its kind.
    """

    grey: npt.NDArray[np.uint8]
    notes: tuple[str, ...] = ()


def has_few_greys(grey: npt.NDArray[np.uint8]) -> bool:
    """Return whether an image is nearly of one grey, as 12-bit values in a 16-bit file are.

    Args:
        grey: uint8 [h, w], with at least one pixel.

    Returns:
        Whether the 1st and the 99th percentile are at most 16 of 255 apart.
    """
    below = np.cumsum(Image.fromarray(grey).histogram())
    low, high = np.searchsorted(below, [0.01 * grey.size, 0.99 * grey.size])
    return bool(high - low <= _FEW)


def decode_grey(data: bytes, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """Decode JPEG or PNG bytes.

    Args:
        data: the whole file.
        max_pixels: the most pixels that an image may have.

    Returns:
        uint8 [height, width], 0 to 255: EXIF orientation applied, 16 bits scaled linearly, transparency laid on black,
        colour converted to luma (ITU-R 601).

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
            # not ImageOps.exif_transpose: it rewrites all EXIF tags, and fails on one of the wrong type
            turn = _UNDO_ORIENTATION.get(_orientation(image))
            return _grey(image if turn is None else image.transpose(turn))
    except ImageError:
        raise
    except DAMAGE as error:
        raise ImageError("undecodable") from error


def header_size(stream: IO[bytes]) -> tuple[int, int] | None:
    """Read the size of a JPEG or PNG from its header.

    Args:
        stream: the file, at its start.

    Returns:
        (height, width) in pixels, with the EXIF orientation applied; None when the header is unreadable or the image
        has more than `MAX_PIXELS` pixels.
    """
    try:
        with _open(stream) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            if _orientation(image) in _SIDEWAYS:
                return image.width, image.height
            return image.height, image.width
    except DAMAGE:
        return None


def _open(stream: IO[bytes]) -> JpegImageFile | PngImageFile:
    """Open a JPEG or PNG by Pillow's class for it: Image.open warns about large images, and accepts other formats."""
    first = stream.read(1)
    stream.seek(0)
    return JpegImageFile(stream) if first == b"\xff" else PngImageFile(stream)


def _orientation(image: Image.Image) -> object:
    """Return the EXIF tag Orientation (1, upright, when absent), which may have any type in a damaged file."""
    return image.getexif().get(0x0112, 1)


def _is_image(data: bytes) -> bool:
    """Return whether bytes start like a common image format that is neither JPEG nor PNG."""
    return data.startswith((b"GIF8", b"II*\0", b"MM\0*", b"SIMPLE", b"%!PS", b"<svg", b"<?xml", b"BM", b"RIFF"))


def _grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Convert a loaded image of any mode to uint8 [height, width]."""
    if image.mode.startswith("I"):  # 16-bit PNG
        scaled: npt.NDArray[np.uint8] = _EIGHT_BITS[np.asarray(image)]
        return scaled
    if image.mode in ("P", "PA", "RGBA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return np.asarray(image.convert("L"), dtype=np.uint8)


@dataclass(frozen=True)
class ContentBox:
    """The rectangle of a letterboxed image that holds its content, in pixels (or cells, see `on_grid`).

    Args:
        top: first row.
        left: first column.
        height: number of rows.
        width: number of columns.
    """

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """The rows of the content, for indexing."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """The columns of the content, for indexing."""
        return slice(self.left, self.left + self.width)

    def on_grid(self, size: int, grid: int) -> "ContentBox":
        """Find the cells whose centre lies in the box.

        Args:
            size: side of the letterboxed image, in pixels.
            grid: number of cells per side of that image.

        Returns:
            The box in cells, at least 1 x 1.
        """
        top, height = _cells(self.top, self.height, size / grid)
        left, width = _cells(self.left, self.width, size / grid)
        return ContentBox(top, left, height, width)


def _cells(start: int, length: int, pixels: float) -> tuple[int, int]:
    """Return the first cell and the number of cells (at least 1) whose centre lies in [start, start + length)."""
    first = math.ceil(start / pixels - 0.5)
    end = math.ceil((start + length) / pixels - 0.5)
    if end > first:
        return first, end - first
    return int((start + length / 2) // pixels), 1


def content_box(height: int, width: int, size: int) -> ContentBox:
    """Return the box of an image of height x width pixels letterboxed to size x size: long side to `size`, centred."""
    scale = size / max(height, width)
    inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
    return ContentBox((size - inner_height) // 2, (size - inner_width) // 2, inner_height, inner_width)


def letterbox(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Letterbox an image.

    Args:
        image: uint8 [h, w].
        size: side of the result, in pixels.

    Returns:
        uint8 [size, size]: the image, resized bilinearly with antialiasing, in the centre of zeros.
    """
    return _into_box(image, size, Image.Resampling.BILINEAR)


def letterbox_mask(mask: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]:
    """Letterbox a mask.

    Args:
        mask: bool [h, w].
        size: side of the result, in pixels.

    Returns:
        bool [size, size]; a pixel is set when at least half of its area is set in `mask`.
    """
    return _into_box(mask.astype(np.uint8) * np.uint8(255), size, Image.Resampling.BOX) >= 128


def _into_box(array: npt.NDArray[np.uint8], size: int, resample: Image.Resampling) -> npt.NDArray[np.uint8]:
    """Resize uint8 [h, w] with a Pillow filter into its content box in zeros: uint8 [size, size]."""
    box = content_box(array.shape[0], array.shape[1], size)
    out = np.zeros((size, size), dtype=np.uint8)
    out[box.rows, box.columns] = np.asarray(Image.fromarray(array).resize((box.width, box.height), resample))
    return out


def unletterbox(scores: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """Invert the letterbox for scores: cut the content out and resize it bilinearly to the image's size.

    Args:
        scores: float32 [K, size, size].
        height: of the original image, in pixels.
        width: of the original image, in pixels.

    Returns:
        float32 [K, height, width].
    """
    box = content_box(height, width, scores.shape[-1])
    return np.stack([resized(content, height, width) for content in scores[:, box.rows, box.columns]])


def resized(scores: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """Resize scores float32 [h, w] bilinearly to [`height`, `width`]; may be read-only."""
    return np.asarray(Image.fromarray(scores).resize((width, height), Image.Resampling.BILINEAR))
