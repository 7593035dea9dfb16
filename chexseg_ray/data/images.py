"""Decode an X-ray to 8-bit grey, and the one letterbox geometry of the study with its inverse."""

import io
import math
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000  # the largest CheXpert image has 12 million


class ImageError(ValueError):
    """Why one file's bytes are no usable image; `reason` is the code that stands in rejects.parquet."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_grey(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode JPEG or PNG bytes.

    Args:
        data: the whole file.

    Returns:
        uint8 [height, width], 0 to 255, EXIF rotation applied, 16-bit scaled linearly, colour to luma (ITU-R 601).

    Raises:
        ImageError: `undecodable`, `format` (neither JPEG nor PNG) or `too_large` (over 100 million pixels, before decoding).
    """
    if not data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        raise ImageError("format" if _is_image(data) else "undecodable")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError("too_large")
            image.load()
            return _grey(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise ImageError("too_large") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError("undecodable") from error


def header_size(stream: IO[bytes]) -> tuple[int, int] | None:
    """(height, width) of a JPEG or PNG after EXIF rotation, from its header alone; None when it has no readable one."""
    try:
        with Image.open(stream, formats=("JPEG", "PNG")) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError, EOFError):
        return None


def _is_image(data: bytes) -> bool:
    return data.startswith((b"GIF8", b"II*\0", b"MM\0*", b"SIMPLE", b"%!PS", b"<svg", b"<?xml", b"BM", b"RIFF"))


def _grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode.startswith("I") or image.mode == "F":  # 16-bit PNG: 0..65535 to 0..255
        wide = np.asarray(image, dtype=np.float64)
        scaled: npt.NDArray[np.uint8] = np.clip(np.rint(wide / 257.0), 0, 255).astype(np.uint8)
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
