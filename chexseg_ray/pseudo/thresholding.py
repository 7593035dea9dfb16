"""From a low-resolution map to a binary mask: upsample, cut to the content, min-max normalise, threshold."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from chexseg_ray.data.images import ContentBox


def upsample(maps: npt.NDArray[np.floating], height: int, width: int) -> npt.NDArray[np.float32]:
    """Enlarge maps bilinearly (align_corners=False). Pillow does it, because importing torch takes 3 s.

    Args:
        maps: [K, h, w].
        height: at least h.
        width: at least w.

    Returns:
        float32 [K, height, width].
    """
    images = (Image.fromarray(np.ascontiguousarray(image, dtype=np.float32)) for image in maps)
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) for image in images])


def min_max(maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scale each of `maps`, float32 [K, h, w], to [0, 1]; a constant map becomes zeros, so that its mask is empty."""
    low = maps.min(axis=(1, 2), keepdims=True)
    span = maps.max(axis=(1, 2), keepdims=True) - low
    scaled = np.where(span > 0, (maps - low) / np.where(span > 0, span, 1), 0)
    return scaled.astype(np.float32)


def normalised_content(maps: npt.NDArray[np.floating], box: ContentBox, size: int) -> npt.NDArray[np.float32]:
    """Enlarge the CAMs of a letterboxed image, cut the padding off, and scale each map to [0, 1].

    Args:
        maps: [K, h, w], the CAMs of the letterboxed image.
        box: the image's content, in pixels.
        size: S, pixels of a side of the letterboxed image.

    Returns:
        float32 [K, box.height, box.width] in [0, 1].
    """
    return min_max(upsample(maps, size, size)[:, box.rows, box.columns])


def otsu_mask(normalised: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Cut a map at Otsu's threshold of its 8-bit form, as CheXlocalize does.

    Args:
        normalised: float32 [h, w] in [0, 1].

    Returns:
        bool [h, w]; empty for a constant map.
    """
    from skimage.filters import threshold_otsu

    levels = (255 * normalised).astype(np.uint8)
    if levels.min() == levels.max():
        return np.zeros(levels.shape, dtype=bool)
    above: npt.NDArray[np.bool_] = levels > threshold_otsu(levels)  # type: ignore[no-untyped-call]
    return above
