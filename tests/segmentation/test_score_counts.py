"""Histograms by a GPU's operators against those of numpy."""

import numpy as np
import torch

from chexseg_ray.evaluation.thresholds import ScoreHistogram, segmentation_grid
from chexseg_ray.segmentation.score_counts import score_counts


def test_counts_equal_the_histogram_of_the_content(rng: np.random.Generator) -> None:
    grid = segmentation_grid("fine")
    scores = rng.random((3, 4, 16, 16)).astype(np.float32)
    scores[0, :, :4] = grid[rng.integers(0, len(grid), (4, 4, 16))]  # a score on a threshold is not above it
    truth = rng.random(scores.shape) > 0.7
    inside = np.zeros((3, 16, 16), dtype=bool)
    boxes = [(slice(0, 16), slice(2, 14)), (slice(3, 9), slice(0, 16)), (slice(5, 6), slice(5, 6))]
    histogram = ScoreHistogram(4, grid)
    for i, (rows, columns) in enumerate(boxes):
        inside[i, rows, columns] = True
        for k in range(4):
            histogram.add(k, scores[i, k, rows, columns], truth[i, k, rows, columns])
    found = score_counts(*map(torch.from_numpy, (scores, truth, inside, grid)))
    np.testing.assert_array_equal(found.numpy(), histogram.counts)
