"""Masks drawn on an X-ray, for people to look at."""

import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

# by place among the pathologies: Okabe and Ito's seven, then three more that keep apart for the colour-blind
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999", "#882255", "#44AA99")
_FILL, _LEAST, _MOST = 0.30, 640, 8000  # opacity; pixels of the long side, below and above which an overlay is enlarged or thinned out
_BAND = 512  # rows that are drawn at once: three floats a pixel are much for a large X-ray


def colour(place: int) -> tuple[int, int, int]:
    """The RGB of the pathology at a place."""
    text = COLOURS[place % len(COLOURS)]
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def overlay(grey: npt.NDArray[np.uint8], masks: npt.NDArray[np.bool_], outline: int) -> npt.NDArray[np.uint8]:
    """Masks as a tint with a line inside their border.

    Args:
        grey: X-ray uint8 [h, w].
        masks: bool [K, h, w], drawn in order.
        outline: width of the line in pixels.

    Returns:
        uint8 [h, w, 3].
    """
    out = np.empty((*grey.shape, 3), dtype=np.uint8)
    for top in range(0, len(grey), _BAND):
        above = min(top, outline)  # rows that a line reaches into the band from
        rows = slice(top - above, top + _BAND + outline)
        out[top : top + _BAND] = _drawn(grey[rows], masks[:, rows], outline)[above : above + _BAND]
    return out


def _drawn(grey: npt.NDArray[np.uint8], masks: npt.NDArray[np.bool_], outline: int) -> npt.NDArray[np.uint8]:
    from scipy.ndimage import binary_erosion

    out = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    for place, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size:
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            own, part, rgb = mask[box], out[box], np.array(colour(place), dtype=np.float32)
            inner = binary_erosion(own, iterations=outline)
            part[own] = (1 - _FILL) * part[own] + _FILL * rgb
            part[own & ~inner] = rgb
    return np.rint(out).astype(np.uint8)


def overlay_png(grey: npt.NDArray[np.uint8], masks: npt.NDArray[np.bool_], labels: Sequence[str], notice: str) -> bytes:
    """An overlay with a legend of what is in it, as PNG bytes.

    Args:
        grey: X-ray uint8 [h, w]; small ones are enlarged, ones of more than 8000 pixels a side thinned out, narrow ones get a margin.
        masks: bool [K, h, w].
        labels: K texts for the legend; those of empty masks are left out.
        notice: the last line.
    """
    step = -(-max(grey.shape) // _MOST)
    grey, masks = grey[::step, ::step], masks[:, ::step, ::step]
    scale = max(1, -(-_LEAST // max(grey.shape)))
    if scale > 1:
        grey = np.kron(grey, np.ones((scale, scale), dtype=np.uint8))
        masks = np.repeat(np.repeat(masks, scale, axis=1), scale, axis=2)
    height, width = grey.shape
    line = min(max(14, width // 36), 96)
    font = ImageFont.load_default(size=line * 0.75)
    found = [k for k in range(len(masks)) if masks[k].any()]
    texts = [(k, labels[k]) for k in found] or [(-1, "no mask above its threshold")]
    widest = max(font.getlength(notice) + line // 4, *(font.getlength(text) + line * 5 // 4 for _, text in texts))
    canvas = Image.new("RGB", (max(width, math.ceil(widest) + line // 4), height + line * (len(texts) + 1) + line // 2), "black")
    canvas.paste(Image.fromarray(overlay(grey, masks, max(2, max(height, width) // 350))))
    draw = ImageDraw.Draw(canvas)
    for row, (place, text) in enumerate(texts):
        top = height + line // 4 + row * line
        if place >= 0:
            draw.rectangle((line // 4, top + line // 5, line, top + line * 4 // 5), fill=colour(place))
        draw.text((line * 5 // 4, top), text, fill="white", font=font)
    draw.text((line // 4, height + line // 4 + len(texts) * line), notice, fill="#bbbbbb", font=font)
    stream = io.BytesIO()
    canvas.save(stream, "PNG", compress_level=3)
    return stream.getvalue()
