"""Which masks may be: by label, by probability, or all."""

import numpy as np

from chexseg_ray.pseudo.gating import open_gates


def test_gates() -> None:
    labels = np.array([[1.0, 0.0, -1.0, np.nan]])
    probability = np.array([[0.1, 0.6, 0.5, 0.9]], dtype=np.float32)
    assert open_gates(labels, probability, "label", 0.5).tolist() == [[True, False, False, False]]
    assert open_gates(labels, probability, "probability", 0.5).tolist() == [[False, True, False, True]]
    edge = np.full((1, 4), 0.3, dtype=np.float32)  # 0.3000000119
    assert open_gates(labels, edge, "probability", 0.3).all()
    assert open_gates(labels, probability, "none", 0.5).all()
