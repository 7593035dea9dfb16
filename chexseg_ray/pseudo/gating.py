"""Which pathologies of an image may have a mask at all."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def open_gates(config: Mapping[str, Any], labels: npt.NDArray[np.float64], probability: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """The gate of every image and pathology.

    Args:
        config: `gate`: label (the image-level label is 1), probability (the classifier's is above `gate_probability`), or none.
        labels: float64 [N, K] of 1, 0, -1 and NaN.
        probability: float32 [N, K] in [0, 1].

    Returns:
        bool [N, K].
    """
    if config["gate"] == "label":
        return np.asarray(labels == 1)
    if config["gate"] == "probability":
        return np.asarray(probability.astype(np.float64) > config["gate_probability"])
    return np.ones(labels.shape, dtype=bool)
