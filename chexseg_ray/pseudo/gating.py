"""The gate that decides which pathologies of an image may have a mask at all."""

import numpy as np
import numpy.typing as npt


def open_gates(
    labels: npt.NDArray[np.float64], probability: npt.NDArray[np.float32], gate: str, gate_probability: float
) -> npt.NDArray[np.bool_]:
    """Decide for every image and pathology whether a mask is allowed.

    Args:
        labels: image-level labels float64 [N, K] of 1, 0, -1 (uncertain) and NaN (blank).
        probability: the classifier's probabilities, float32 [N, K] in [0, 1].
        gate: `label` opens where the label is 1, `probability` where the probability is above `gate_probability`, and
            `none` opens everywhere.
        gate_probability: in [0, 1]; used by the gate `probability` only.

    Returns:
        bool [N, K], True where the gate is open.
    """
    if gate == "label":
        return np.asarray(labels == 1)
    if gate == "probability":
        return np.asarray(probability.astype(np.float64) > gate_probability)
    return np.ones(labels.shape, dtype=bool)
