"""From a low-resolution map to a binary mask: upsample, cut to the content, min-max normalise, threshold."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from chexseg_ray.data.images import ContentBox


def upsample(maps: npt.NDArray[np.floating], height: int, width: int) -> npt.NDArray[np.float32]:
    """Bilinear (align_corners=False) from [K, h, w] to a larger float32 [K, height, width]. Pillow's, as torch takes 3 s to import."""
    images = (Image.fromarray(np.ascontiguousarray(m, dtype=np.float32)) for m in maps)
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) for image in images])


def min_max(maps: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Each map of [K, h, w] scaled to [0, 1]; a constant map becomes zeros, so that its mask is empty."""
    low = maps.min(axis=(1, 2), keepdims=True)
    span = maps.max(axis=(1, 2), keepdims=True) - low
    scaled: npt.NDArray[np.float32] = np.where(span > 0, (maps - low) / np.where(span > 0, span, 1), 0).astype(np.float32)
    return scaled


def normalised_content(maps: npt.NDArray[np.floating], box: ContentBox, size: int) -> npt.NDArray[np.float32]:
    """CAMs [K, h, w] of a letterboxed image to float32 [K, box.height, box.width] in [0, 1], without the padding."""
    return min_max(upsample(maps, size, size)[:, box.rows, box.columns])


def otsu_mask(normalised: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Otsu's threshold on the map's 8-bit form, as CheXlocalize does.

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
