"""The area under the ROC curve (AUROC) of each pathology."""

import numpy as np
import numpy.typing as npt


def auroc(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute AUROC as Mann-Whitney's U divided by the number of pairs; a tie counts half.

    Args:
        scores: [N, K], higher for present.
        labels: [N, K], 1 for present and 0 for absent; images with any other value (-1, NaN) are left out.

    Returns:
        float64 [K] in [0, 1]; NaN where a pathology has no positive or no negative image.
    """
    out = np.full(labels.shape[1], np.nan)
    for k in range(labels.shape[1]):
        positive, negative = scores[labels[:, k] == 1, k], scores[labels[:, k] == 0, k]
        if len(positive) and len(negative):
            ordered = np.sort(negative)
            below, not_above = np.searchsorted(ordered, positive, "left"), np.searchsorted(ordered, positive, "right")
            out[k] = (below + not_above).sum() / (2 * len(positive) * len(negative))
    return out
