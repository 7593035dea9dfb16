"""Intersection over union (IoU) from stored pixel counts, in the field's two aggregations; both are always reported."""

import numpy as np
import numpy.typing as npt


def mask_counts(predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Count the pixels of one image's masks.

    Args:
        predicted: bool [K, h, w].
        truth: bool [K, h, w].

    Returns:
        int64 [K, 3], pixels of intersection, prediction and truth.
    """
    over = (1, 2)
    return np.stack([(predicted & truth).sum(over), predicted.sum(over), truth.sum(over)], axis=1).astype(np.int64)


def _ratio(intersection: npt.NDArray[np.int64], union: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Intersection over union, elementwise; NaN where the union is empty."""
    return np.where(union > 0, intersection / np.maximum(union, 1), np.nan)


def pooled_iou(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Compute the paper's IoU: the counts are summed over all images before they are divided.

    Args:
        counts: int64 [N, K, 3], pixels of intersection, prediction and truth.

    Returns:
        float64 [K] in [0, 1]; NaN where no pixel of any image is predicted or true.
    """
    total = counts.sum(axis=0)
    return _ratio(total[:, 0], total[:, 1] + total[:, 2] - total[:, 0])


def per_image_iou(counts: npt.NDArray[np.int64], true_pos_only: bool) -> npt.NDArray[np.float64]:
    """Compute CheXlocalize's IoU: the mean over images of each image's IoU.

    Args:
        counts: int64 [N, K, 3] at the original resolution, pixels of intersection, prediction and truth.
        true_pos_only: CheXlocalize's flag of this name. True (its default) leaves out images where prediction or
            truth is empty; False leaves out only images where both are.

    Returns:
        float64 [K] in [0, 1]; NaN where no image is left.
    """
    return nan_mean(image_iou(counts, true_pos_only))


def image_iou(counts: npt.NDArray[np.int64], true_pos_only: bool) -> npt.NDArray[np.float64]:
    """Compute each image's IoU.

    Args:
        counts: int64 [N, K, 3], pixels of intersection, prediction and truth.
        true_pos_only: whether images where prediction or truth is empty are left out, not only those where both are.

    Returns:
        float64 [N, K] in [0, 1]; NaN where the image is left out.
    """
    intersection, predicted, truth = counts[..., 0], counts[..., 1], counts[..., 2]
    iou = _ratio(intersection, predicted + truth - intersection)
    if true_pos_only:
        return np.where((predicted > 0) & (truth > 0), iou, np.nan)
    return iou


def nan_mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average the values that are not NaN over axis 0, float64 [...] of [N, ...]; NaN, without a warning, for none."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    return np.where(count > 0, np.where(defined, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)
