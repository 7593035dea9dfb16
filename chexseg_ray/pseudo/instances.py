"""Instances from a displacement field, and instance-wise CAMs (paper appendix A.2).

An instance is the set of cells whose vectors point to one centroid.
"""

import numpy as np
import numpy.typing as npt

REFINEMENTS = 100  # the most steps from cell to cell


def follow(displacement: npt.NDArray[np.float32], refinements: int = REFINEMENTS) -> npt.NDArray[np.int64]:
    """Follow each cell's vector from cell to cell until no cell moves any more.

    Args:
        displacement: float32 [2, h, w], (dy, dx) in cells.
        refinements: the most steps.

    Returns:
        int64 [2, h, w], the row and column where each cell ends.
    """
    height, width = displacement.shape[1:]
    rows, columns = np.mgrid[:height, :width]
    position = np.stack([rows, columns]).astype(np.float64)
    last = np.array([height - 1, width - 1]).reshape(2, 1, 1)
    for _ in range(refinements):
        row, column = np.rint(position).astype(np.int64)
        moved = np.clip(position + displacement[:, row, column], 0, last)
        if np.array_equal(np.rint(moved), np.rint(position)):
            break
        position = moved
    ends: npt.NDArray[np.int64] = np.rint(position).astype(np.int64)
    return ends


def group_by_centroid(
    displacement: npt.NDArray[np.float32], foreground: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Group cells by the centroid that their vectors lead to.

    The cells where vectors of the confident foreground end are the centroids. Ends with fewer than three cells between
    them, along a row or column, are one centroid.

    Args:
        displacement: float32 [2, h, w], (dy, dx) in cells.
        foreground: bool [h, w], the confident foreground.

    Returns:
        int64 [h, w]: the number of each cell's instance, from 1 on; 0 where its vector leads to no centroid. With
        vectors of zero, the instances are the regions of the foreground that have at least three cells between them.
    """
    from scipy.ndimage import binary_dilation
    from skimage.measure import label

    ends = follow(displacement)
    reached = np.zeros(foreground.shape, dtype=bool)
    reached[ends[0][foreground], ends[1][foreground]] = True
    centroids: npt.NDArray[np.int64] = label(binary_dilation(reached), connectivity=2)  # type: ignore[no-untyped-call]
    groups: npt.NDArray[np.int64] = np.where(reached, centroids, 0)[ends[0], ends[1]]
    return groups


def instance_cams(
    cam: npt.NDArray[np.float32], displacement: npt.NDArray[np.float32], foreground: float
) -> npt.NDArray[np.float32]:
    """Split one CAM by instance.

    An instance takes every cell that leads to its centroid, whether the cell is confident foreground or not. The cells
    of no instance are one more map.

    Args:
        cam: float32 [h, w] >= 0.
        displacement: float32 [2, h, w], (dy, dx) in cells.
        foreground: the share of the CAM's maximum, in [0, 1], above which a cell is confident foreground.

    Returns:
        float32 [n, h, w], n >= 1, maps that add up to the CAM; the last one holds what belongs to no instance.
    """
    if cam.max() <= 0:
        return cam[None]
    groups = group_by_centroid(displacement, cam > foreground * cam.max())
    parts = [np.where(groups == number, cam, np.float32(0)) for number in np.unique(groups[groups > 0])]
    rest = np.where(groups > 0, np.float32(0), cam)
    return np.stack([*parts, rest])
