"""Masks drawn on an X-ray, for people to look at."""

import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

# by index of the pathology: Okabe and Ito's seven, then three more that the colour-blind can tell apart
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999", "#882255", "#44AA99")
_OPACITY = 0.30  # of the tint
_MIN_SIDE = 640  # pixels of the long side; smaller X-rays are enlarged
_MAX_SIDE = 8000  # pixels of the long side; larger X-rays are subsampled
_BAND_ROWS = 512  # rows that are drawn at once, because three floats per pixel of a large X-ray take much memory


def colour(index: int) -> tuple[int, int, int]:
    """Return the colour of pathology number `index` as red, green and blue, 0 to 255; after the last they repeat."""
    text = COLOURS[index % len(COLOURS)]
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def overlay(grey: npt.NDArray[np.uint8], masks: npt.NDArray[np.bool_], outline: int) -> npt.NDArray[np.uint8]:
    """Draw masks on an X-ray, each as a tint with a line inside its border.

    Args:
        grey: X-ray uint8 [h, w].
        masks: bool [K, h, w], drawn in order, each in the colour of its index.
        outline: width of the line in pixels.

    Returns:
        uint8 [h, w, 3].
    """
    out = np.empty((*grey.shape, 3), dtype=np.uint8)
    for top in range(0, len(grey), _BAND_ROWS):
        above = min(top, outline)  # the border lines in the band depend on this many rows above it
        rows = slice(top - above, top + _BAND_ROWS + outline)
        out[top : top + _BAND_ROWS] = _draw_band(grey[rows], masks[:, rows], outline)[above : above + _BAND_ROWS]
    return out


def _draw_band(grey: npt.NDArray[np.uint8], masks: npt.NDArray[np.bool_], outline: int) -> npt.NDArray[np.uint8]:
    """Draw masks on all rows at once; arguments and result as in `overlay`."""
    from scipy.ndimage import binary_erosion

    out = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    for index, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size:
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            inside, part = mask[box], out[box]
            rgb = np.array(colour(index), dtype=np.float32)
            inner = binary_erosion(inside, iterations=outline)
            part[inside] = (1 - _OPACITY) * part[inside] + _OPACITY * rgb
            part[inside & ~inner] = rgb
    return np.rint(out).astype(np.uint8)


def _one_line(text: str) -> str:
    """A text without line breaks, which Pillow does not measure, and with escapes for what is no character."""
    return " ".join(text.encode(errors="backslashreplace").decode().split())


def overlay_png(grey: npt.NDArray[np.uint8], masks: npt.NDArray[np.bool_], labels: Sequence[str], notice: str) -> bytes:
    """Draw an overlay with a legend below it.

    Args:
        grey: X-ray uint8 [h, w]. It is enlarged by a whole factor if its long side has fewer than 640 pixels, and
            subsampled if it has more than 8000; if it is narrower than the legend, it gets a margin on the right.
        masks: bool [K, h, w].
        labels: K texts for the legend; those of empty masks are left out.
        notice: the last line.

    Returns:
        The bytes of a PNG.
    """
    step = -(-max(grey.shape) // _MAX_SIDE)  # rounded up
    grey, masks = grey[::step, ::step], masks[:, ::step, ::step]
    scale = max(1, -(-_MIN_SIDE // max(grey.shape)))  # rounded up
    if scale > 1:
        grey = np.kron(grey, np.ones((scale, scale), dtype=np.uint8))
        masks = np.repeat(np.repeat(masks, scale, axis=1), scale, axis=2)
    height, width = grey.shape
    line = min(max(14, width // 36), 96)  # height of a line of text
    font = ImageFont.load_default(size=line * 0.75)
    entries: list[tuple[int | None, str]] = [(k, _one_line(labels[k])) for k in range(len(masks)) if masks[k].any()]
    if not entries:
        entries = [(None, "no mask above its threshold")]
    widest = max(font.getlength(notice) + line // 4, *(font.getlength(text) + line * 5 // 4 for _, text in entries))
    size = (max(width, math.ceil(widest) + line // 4), height + line * (len(entries) + 1) + line // 2)
    canvas = Image.new("RGB", size, "black")
    canvas.paste(Image.fromarray(overlay(grey, masks, max(2, max(height, width) // 350))))
    draw = ImageDraw.Draw(canvas)
    for row, (index, text) in enumerate(entries):
        top = height + line // 4 + row * line
        if index is not None:
            draw.rectangle((line // 4, top + line // 5, line, top + line * 4 // 5), fill=colour(index))
        draw.text((line * 5 // 4, top), text, fill="white", font=font)
    draw.text((line // 4, height + line // 4 + len(entries) * line), notice, fill="#bbbbbb", font=font)
    stream = io.BytesIO()
    canvas.save(stream, "PNG", compress_level=3)
    return stream.getvalue()
