"""IR labels: which cells of a CAM are confidently foreground (1), confidently background (0), or neither (255).

Paper appendix B.1: foreground is above 0.30 of the map's maximum, background up to 0.05. The paper names no dense CRF,
so there is none.
"""

import numpy as np
import numpy.typing as npt

from chexseg_ray.data.images import ContentBox
from chexseg_ray.pseudo.thresholding import upsample

BACKGROUND, FOREGROUND, IGNORE = 0, 1, 255


def ir_labels(
    cams: npt.NDArray[np.floating],
    gate: npt.NDArray[np.bool_],
    box: ContentBox,
    grid: int,
    foreground: float,
    background: float,
) -> npt.NDArray[np.uint8]:
    """Make the IR labels of one image.

    Args:
        cams: [K, h, w] >= 0 of a letterboxed image, at any resolution.
        gate: bool [K], which pathologies the image may show.
        box: the image's content, in cells of the grid.
        grid: G, cells of a side (a quarter of the image's pixels).
        foreground: share of the map's maximum above which a cell is foreground.
        background: share of the map's maximum up to which a cell is background.

    Returns:
        uint8 [K, G, G] of 0, 1 and 255. The padding is 255. A pathology whose gate is closed, or whose map is zero
        throughout, is 255 throughout: it has no foreground, and background without an object tells nothing of a border.
    """
    labels = np.full((len(cams), grid, grid), IGNORE, dtype=np.uint8)
    usable = np.flatnonzero(gate & (cams.max(axis=(1, 2)) > 0))
    if not len(usable):
        return labels
    content = upsample(cams[usable], grid, grid)[:, box.rows, box.columns]
    peak = content.max(axis=(1, 2), keepdims=True)
    inner = np.full(content.shape, IGNORE, dtype=np.uint8)
    inner[content <= background * peak] = BACKGROUND
    inner[content > foreground * peak] = FOREGROUND
    inner[np.broadcast_to(peak <= 0, inner.shape)] = IGNORE  # the whole map lies in the padding
    labels[usable, box.rows, box.columns] = inner
    return labels
