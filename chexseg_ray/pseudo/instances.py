"""Instances from a displacement field, and instance-wise CAMs (paper appendix A.2): cells whose vectors point to one centroid."""

import numpy as np
import numpy.typing as npt

CENTROID_REACH = 2.5  # cells: where the field is shorter than this, a centroid lies
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


def group_by_centroid(displacement: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Group cells by the centroid that their vectors lead to: a connected region of short vectors (below CENTROID_REACH).

    Args:
        displacement: float32 [2, h, w], (dy, dx) in cells.

    Returns:
        int64 [h, w]: the number of each cell's centroid from 1 on, 0 where its vector leads to none. The background, whose vectors
        are short groups, has numbers too.
    """
    from skimage.measure import label

    short = np.hypot(displacement[0], displacement[1]) < CENTROID_REACH
    centroids: npt.NDArray[np.int64] = label(short, connectivity=1)  # type: ignore[no-untyped-call]
    ends = follow(displacement)
    groups: npt.NDArray[np.int64] = centroids[ends[0], ends[1]]
    return groups


def instance_cams(cam: npt.NDArray[np.float32], displacement: npt.NDArray[np.float32], foreground: float) -> npt.NDArray[np.float32]:
    """Split one CAM by instance.

    An instance is a centroid that confident foreground (above `foreground` of the map's maximum) leads to; it takes every cell that
    leads there too. What is left over is one map of its own.

    Args:
        cam: float32 [h, w] >= 0.
        displacement: float32 [2, h, w], (dy, dx) in cells.
        foreground: share of the CAM's maximum.

    Returns:
        float32 [n, h, w], n >= 1, that add up to the CAM; the last is what belongs to no instance.
    """
    if cam.max() <= 0:
        return cam[None]
    groups = group_by_centroid(displacement)
    confident = np.setdiff1d(np.unique(groups[cam > foreground * cam.max()]), [0])
    parts = [np.where(groups == number, cam, np.float32(0)) for number in confident]
    rest = np.where(np.isin(groups, confident), np.float32(0), cam)
    return np.stack([*parts, rest])
