"""Instances from a displacement field, and instance-wise CAMs (paper appendix A.2): cells whose vectors point to one centroid."""

import numpy as np
import numpy.typing as npt

REFINEMENTS = 100


def follow(displacement: npt.NDArray[np.float32], refinements: int = REFINEMENTS) -> npt.NDArray[np.int64]:
    """Where each cell's vector leads to, followed from cell to cell until it no longer moves.

    Args:
        displacement: float32 [2, h, w], (dy, dx) in cells.
        refinements: the most steps.

    Returns:
        int64 [2, h, w], row and column of the end.
    """
    height, width = displacement.shape[1:]
    rows, columns = np.mgrid[:height, :width]
    at = np.stack([rows, columns]).astype(np.float64)
    for _ in range(refinements):
        row, column = np.rint(at).astype(np.int64)
        moved = np.clip(at + displacement[:, row, column], 0, np.array([height - 1, width - 1]).reshape(2, 1, 1))
        if np.array_equal(np.rint(moved), np.rint(at)):
            break
        at = moved
    ends: npt.NDArray[np.int64] = np.rint(at).astype(np.int64)
    return ends


def group_by_centroid(displacement: npt.NDArray[np.float32], foreground: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Group cells by the centroid that their vectors lead to.

    Where the vectors of the confident foreground end is a centroid; ends with less than three cells between them are one.

    Args:
        displacement: float32 [2, h, w], (dy, dx) in cells.
        foreground: bool [h, w], the confident foreground.

    Returns:
        int64 [h, w]: the number of each cell's instance from 1 on, 0 where its vector leads to none. With vectors of zero the
        instances are the regions of the foreground that have at least three cells between them.
    """
    from scipy.ndimage import binary_dilation
    from skimage.measure import label

    ends = follow(displacement)
    reached = np.zeros(foreground.shape, dtype=bool)
    reached[ends[0][foreground], ends[1][foreground]] = True
    centroids: npt.NDArray[np.int64] = label(binary_dilation(reached), connectivity=2)  # type: ignore[no-untyped-call]
    groups: npt.NDArray[np.int64] = np.where(reached, centroids, 0)[ends[0], ends[1]]
    return groups


def instance_cams(cam: npt.NDArray[np.float32], displacement: npt.NDArray[np.float32], foreground: float) -> npt.NDArray[np.float32]:
    """Split one CAM by instance.

    An instance takes every cell that leads to its centroid, confident foreground (above `foreground` of the map's maximum) or not.
    What is left over is one map of its own.

    Args:
        cam: float32 [h, w] >= 0.
        displacement: float32 [2, h, w], (dy, dx) in cells.
        foreground: share of the CAM's maximum.

    Returns:
        float32 [n, h, w], n >= 1, that add up to the CAM; the last is what belongs to no instance.
    """
    if cam.max() <= 0:
        return cam[None]
    groups = group_by_centroid(displacement, cam > foreground * cam.max())
    parts = [np.where(groups == number, cam, np.float32(0)) for number in np.unique(groups[groups > 0])]
    rest = np.where(groups > 0, np.float32(0), cam)
    return np.stack([*parts, rest])
