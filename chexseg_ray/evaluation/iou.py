"""Intersection over union from stored counts, in the two aggregations that the field uses; both are always reported."""

import numpy as np
import numpy.typing as npt


def mask_counts(predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Pixels of intersection, predicted and truth: int64 [K, 3] from bool [K, h, w] each."""
    over = (1, 2)
    return np.stack([(predicted & truth).sum(over), predicted.sum(over), truth.sum(over)], axis=1).astype(np.int64)


def _ratio(intersection: npt.NDArray[np.int64], union: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.where(union > 0, intersection / np.maximum(union, 1), np.nan)


def pooled_iou(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The paper's IoU: sums over the set, then the ratio.

    Args:
        counts: int64 [N, K, 3] of intersection, predicted, truth.

    Returns:
        float64 [K]; NaN where no pixel of the set is predicted or true.
    """
    total = counts.sum(axis=0)
    return _ratio(total[:, 0], total[:, 1] + total[:, 2] - total[:, 0])


def per_image_iou(counts: npt.NDArray[np.int64], true_pos_only: bool) -> npt.NDArray[np.float64]:
    """CheXlocalize's IoU: the ratio of each image, then the mean over images.

    Args:
        counts: int64 [N, K, 3] at the original resolution.
        true_pos_only: CheXlocalize's default leaves out images where prediction or truth is empty; otherwise only images where
            both are.

    Returns:
        float64 [K]; NaN where no image is left.
    """
    return nan_mean(image_iou(counts, true_pos_only))


def image_iou(counts: npt.NDArray[np.int64], true_pos_only: bool) -> npt.NDArray[np.float64]:
    """The IoU of each image, float64 [N, K], NaN where it does not count; arguments as per_image_iou."""
    intersection, predicted, truth = counts[..., 0], counts[..., 1], counts[..., 2]
    each = _ratio(intersection, predicted + truth - intersection)
    return np.where((predicted > 0) & (truth > 0), each, np.nan) if true_pos_only else each


def nan_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The mean over axis 0 of what is defined; NaN, without a warning, where nothing is."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    return np.where(count > 0, np.where(defined, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
