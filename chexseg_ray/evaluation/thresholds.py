"""Thresholds from score histograms: one pass over the images, memory independent of their number, exact at the grid."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# {0, .05, ..., .95}, the grid of the paper's released code, in float32 as the scores are
SEGMENTATION_GRID: npt.NDArray[np.float32] = (np.arange(20) / 20).astype(np.float32)
_LOW = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04)  # between the paper's 0, a mask of the whole image, and its .05


def segmentation_grid(name: str) -> npt.NDArray[np.float32]:
    """Return the thresholds that are tried for the scores of a segmentation network.

    Args:
        name: `paper`, 0 and 19 steps of .05; or `fine`, seven thresholds from .001 to .04 in place of 0.

    Returns:
        float32 [T], increasing.
    """
    if name == "paper":
        return SEGMENTATION_GRID
    return np.concatenate([np.array(_LOW, dtype=np.float32), SEGMENTATION_GRID[1:]])


def cam_grid(step: float) -> npt.NDArray[np.float32]:
    """Thresholds of normalised CAMs, float32 [T]: step, 2 step, ... below 1.

    0 is not among them, as it would make a mask of almost the whole image.

    Args:
        step: distance between two thresholds, in (0, 1).
    """
    return (np.arange(1, math.ceil(1 / step - 1e-9)) * step).astype(np.float32)


class ScoreHistogram:
    """Counts of pixels between neighbouring thresholds, for each pathology and for true and other pixels.

    A score's bin is the number of thresholds strictly below it, so `score > thresholds[t]` exactly when bin > t.
    """

    def __init__(self, num_pathologies: int, thresholds: npt.NDArray[np.float32]) -> None:
        """Start with all counts at 0.

        Args:
            num_pathologies: K.
            thresholds: float32 [T], increasing.
        """
        self.thresholds = thresholds
        self.counts = np.zeros((num_pathologies, 2, len(thresholds) + 1), dtype=np.int64)

    def add(self, pathology: int, scores: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_]) -> None:
        """Add one image's pixels of one pathology.

        Args:
            pathology: its index, k < K.
            scores: float32 of any shape.
            truth: bool of the same shape.
        """
        bins = np.searchsorted(self.thresholds, scores.ravel(), side="left")
        width = len(self.thresholds) + 1
        flat = np.bincount(bins + width * truth.ravel(), minlength=2 * width)
        self.counts[pathology] += flat.reshape(2, width)

    def iou(self) -> npt.NDArray[np.float64]:
        """Pooled IoU at every threshold, float64 [K, T]; NaN where no pixel is predicted or true."""
        return _iou_curves(self.counts)

    def iou_over_all(self) -> npt.NDArray[np.float64]:
        """Pooled IoU at every threshold over the pixels of all pathologies together, float64 [T]."""
        curve: npt.NDArray[np.float64] = _iou_curves(self.counts.sum(axis=0, keepdims=True))[0]
        return curve

    def positive_pixels(self) -> npt.NDArray[np.int64]:
        """True pixels added so far, int64 [K]."""
        positives: npt.NDArray[np.int64] = self.counts[:, 1].sum(axis=1)
        return positives


def _iou_curves(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Pooled IoU float64 [K, T] at every threshold, of a histogram's counts int64 [K, 2, T + 1]."""
    above = counts[..., ::-1].cumsum(axis=-1)[..., ::-1][..., 1:]  # [K, 2, T]: pixels with bin > t
    union = counts[:, 1].sum(axis=-1)[:, None] + above[:, 0]
    return np.where(union > 0, above[:, 1] / np.maximum(union, 1), np.nan)


@dataclass(frozen=True)
class Choice:
    """A pathology's threshold, the IoU it was tuned to (NaN if it was not tuned for this pathology), and its source.

    The source is the images that it was tuned on (`expert_train`, `validation`), or `all`, `default` or `fixed`.
    """

    threshold: float
    iou: float
    source: str


def choose_cam_thresholds(histogram: ScoreHistogram) -> list[Choice]:
    """Choose for each pathology the threshold with the best pooled IoU.

    A pathology without true pixels, or whose IoU is 0 at every threshold, takes the best threshold over all pathologies
    together (source `all`), or the middle of the grid (source `default`) if that IoU is 0 everywhere too.

    Args:
        histogram: the CAMs of the expert training images.

    Returns:
        K choices, in the order of the pathologies.
    """
    curves = histogram.iou()
    together = np.nan_to_num(histogram.iou_over_all())
    if together.max() > 0:
        common, source = int(together.argmax()), "all"
    else:
        common, source = len(together) // 2, "default"
    out = []
    for curve, positives in zip(curves, histogram.positive_pixels(), strict=True):
        best = int(np.nan_to_num(curve).argmax())
        if positives and np.nan_to_num(curve[best]) > 0:
            out.append(Choice(float(histogram.thresholds[best]), float(curve[best]), "expert_train"))
        else:
            out.append(Choice(float(histogram.thresholds[common]), float("nan"), source))
    return out


def choose_segmentation_thresholds(
    sources: list[tuple[str, ScoreHistogram, npt.NDArray[np.int64]]], min_positives: list[int], default: float
) -> list[Choice]:
    """Choose for each pathology the best threshold of the first source that has enough positive images.

    Args:
        sources: name, histogram and positive images int64 [K] of each set of images, in order of preference.
        min_positives: how many positive images each source must have for a pathology; one number per source.
        default: the threshold where no source has enough, or where IoU is 0 at every threshold.

    Returns:
        K choices, in the order of the pathologies; none without sources.
    """
    num_pathologies = len(sources[0][2]) if sources else 0
    out = []
    for k in range(num_pathologies):
        choice = Choice(default, float("nan"), "default")
        for (name, histogram, positives), needed in zip(sources, min_positives, strict=True):
            curve = np.nan_to_num(histogram.iou()[k])
            if positives[k] >= needed and curve.max() > 0:
                choice = Choice(float(histogram.thresholds[int(curve.argmax())]), float(curve.max()), name)
                break
        out.append(choice)
    return out


def common_pathologies(positives: npt.NDArray[np.int64], min_positives: int) -> list[int]:
    """Find the pathologies that enough validation images show.

    Args:
        positives: positive images of each pathology, int64 [K].
        min_positives: how many are enough.

    Returns:
        Their indices, increasing; the index of the most frequent pathology if none has enough.
    """
    enough = np.flatnonzero(positives >= min_positives)
    if not len(enough):
        return [int(positives.argmax())]
    return [int(k) for k in enough]
