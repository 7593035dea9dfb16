"""Masks on X-rays: the drawing against one without bands, and what people must be able to read beside it."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion

from chexseg_ray.data.overlays import colour, overlay, overlay_png

NOTICE = "Research software: not for clinical use."


def drawn_whole(grey: np.ndarray, masks: np.ndarray, outline: int) -> np.ndarray:
    out = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    for place, mask in enumerate(masks):
        rgb = np.array(colour(place), dtype=np.float32)
        out[mask] = np.float32(0.7) * out[mask] + np.float32(0.3) * rgb
        if mask.any():
            out[mask & ~binary_erosion(mask, iterations=outline)] = rgb
    return np.rint(out).astype(np.uint8)


@pytest.mark.parametrize("outline", [1, 7, 30])
@pytest.mark.parametrize("shape", [(40, 50), (512, 30), (1100, 60), (1030, 3)])
def test_bands_and_boxes_leave_no_trace_in_an_overlay(
    shape: tuple[int, int], outline: int, rng: np.random.Generator
) -> None:
    masks = np.zeros((4, *shape), dtype=bool)
    masks[0, shape[0] // 5 : -2] = True  # over a band's end, and to the rim
    masks[1, :, shape[1] // 3 :] = True
    masks[2] = rng.random(shape) < 0.9
    grey = rng.integers(0, 256, shape, dtype=np.uint8)
    np.testing.assert_array_equal(overlay(grey, masks, outline), drawn_whole(grey, masks, outline))


@pytest.mark.parametrize("shape", [(4000, 1), (8001, 9), (640, 20)])
def test_legend_and_notice_are_whole_below_a_narrow_x_ray(shape: tuple[int, int]) -> None:
    def below(height: int, width: int) -> np.ndarray:
        """The lit pixels of what stands below an X-ray of that size."""
        masks = np.ones((1, height, width), dtype=bool)
        png = overlay_png(
            np.full((height, width), 120, dtype=np.uint8), masks, ["Enlarged Cardiomediastinum 0.53"], NOTICE
        )
        with Image.open(io.BytesIO(png)) as image:
            lit = np.asarray(image).any(axis=2)
        return lit[-(2 * 14 + 7) :]

    narrow, wide = below(*shape), below(640, 500)
    shown = narrow.shape[1]
    assert not wide[:, shown:].any(), "it ends where a wide X-ray's does"
    np.testing.assert_array_equal(narrow, wide[:, :shown])
