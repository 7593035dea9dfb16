"""Area under the ROC curve, per pathology."""

import numpy as np
import numpy.typing as npt


def auroc(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mann-Whitney's U over the number of pairs, ties counting half.

    Args:
        scores: [N, K], larger for present.
        labels: [N, K] of 1, 0, and anything else (-1, NaN) for images that do not count.

    Returns:
        float64 [K]; NaN where a pathology lacks positives or negatives.
    """
    out = np.full(labels.shape[1], np.nan)
    for k in range(labels.shape[1]):
        positive, negative = scores[labels[:, k] == 1, k], scores[labels[:, k] == 0, k]
        if len(positive) and len(negative):
            ordered = np.sort(negative)
            below, not_above = np.searchsorted(ordered, positive, "left"), np.searchsorted(ordered, positive, "right")
            out[k] = (below + not_above).sum() / (2 * len(positive) * len(negative))
    return out
