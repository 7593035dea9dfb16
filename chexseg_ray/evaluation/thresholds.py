"""Thresholds from score histograms: one pass, memory independent of the number of images, exact at every threshold."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# {0, .05, ..., .95}, the released code's grid, in the scores' own float32
SEGMENTATION_GRID: npt.NDArray[np.float32] = (np.arange(20) / 20).astype(np.float32)


def cam_grid(step: float) -> npt.NDArray[np.float32]:
    """step, 2 step, ... below 1: thresholds of normalised maps; never 0, which makes a mask of every whole map."""
    return (np.arange(1, math.ceil(1 / step - 1e-9)) * step).astype(np.float32)


class ScoreHistogram:
    """Counts of scores between neighbouring thresholds, per pathology and truth.

    A score's bin is the number of thresholds strictly below it, so `score > thresholds[t]` exactly when bin > t.
    """

    def __init__(self, num_pathologies: int, thresholds: npt.NDArray[np.float32]) -> None:
        self.thresholds = thresholds
        self.counts = np.zeros((num_pathologies, 2, len(thresholds) + 1), dtype=np.int64)

    def add(self, pathology: int, scores: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_]) -> None:
        """Add one image's scores and truth of one pathology (arrays of one shape)."""
        bins = np.searchsorted(self.thresholds, scores.ravel(), side="left")
        width = len(self.thresholds) + 1
        flat = np.bincount(bins + width * truth.ravel(), minlength=2 * width)
        self.counts[pathology] += flat.reshape(2, width)

    def iou(self) -> npt.NDArray[np.float64]:
        """Pooled IoU float64 [K, T] at every threshold; NaN where no pixel is predicted or true."""
        return _curve(self.counts)

    def iou_over_all(self) -> npt.NDArray[np.float64]:
        """Pooled IoU float64 [T] with all pathologies' pixels together."""
        curve: npt.NDArray[np.float64] = _curve(self.counts.sum(axis=0, keepdims=True))[0]
        return curve

    def positive_pixels(self) -> npt.NDArray[np.int64]:
        """int64 [K], true pixels seen."""
        positives: npt.NDArray[np.int64] = self.counts[:, 1].sum(axis=1)
        return positives


def _curve(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    above = counts[..., ::-1].cumsum(axis=-1)[..., ::-1][..., 1:]  # [K, 2, T]: pixels with bin > t
    union = counts[:, 1].sum(axis=-1)[:, None] + above[:, 0]
    return np.where(union > 0, above[:, 1] / np.maximum(union, 1), np.nan)


@dataclass(frozen=True)
class Choice:
    """A threshold, the IoU that it had where it was tuned (NaN when it was not), and where it comes from."""

    threshold: float
    iou: float
    source: str


def choose_cam_thresholds(histogram: ScoreHistogram) -> list[Choice]:
    """The threshold with the best pooled IoU per pathology; one without positives, or whose curve is zero throughout,
    takes the value tuned over all pathologies (source `all`; the grid's middle, `default`, when that is zero too)."""
    curves = histogram.iou()
    together = np.nan_to_num(histogram.iou_over_all())
    middle = len(together) // 2
    common = int(together.argmax()) if together.max() > 0 else middle
    source = "all" if together.max() > 0 else "default"
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
    """Per pathology, the best threshold of the first source that has enough positive images.

    Args:
        sources: name, histogram and positive images int64 [K] of each, in order of preference.
        min_positives: positive images that each source must have for a pathology.
        default: the threshold when no source serves.
    """
    out = []
    for k in range(len(sources[0][2]) if sources else 0):
        choice = Choice(default, float("nan"), "default")
        for (name, histogram, positives), needed in zip(sources, min_positives, strict=True):
            curve = np.nan_to_num(histogram.iou()[k])
            if positives[k] >= needed and curve.max() > 0:
                choice = Choice(float(histogram.thresholds[int(curve.argmax())]), float(curve.max()), name)
                break
        out.append(choice)
    return out


def common_pathologies(positives: npt.NDArray[np.int64], min_positives: int) -> list[int]:
    """Indices of the pathologies with enough positive validation images; the most frequent one when none has."""
    enough = np.flatnonzero(positives >= min_positives)
    return [int(k) for k in enough] if len(enough) else [int(positives.argmax())]
