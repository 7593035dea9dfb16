"""From X-rays of any size to masks at their own."""

import numpy as np
import torch
from torch import nn

from chexseg_ray.data.images import content_box, letterbox, unletterbox
from chexseg_ray.segmentation.inference import BATCH, Segmenter
from chexseg_ray.segmentation.training import predict


def test_masks_are_the_scores_above_their_thresholds_at_both_sizes_and_none_lies_in_the_padding(
    rng: np.random.Generator,
) -> None:
    torch.manual_seed(0)
    network, device = nn.Conv2d(3, 4, 3, padding=1).eval(), torch.device("cpu")
    thresholds = np.array([0.3, 0.45, 0.5, 0.7], dtype=np.float32)
    segmenter = Segmenter(network, ("a", "b", "c", "d"), thresholds, "chexpert", 32, device)
    shapes = [(50, 41), (20, 64), (90, 7), (32, 32), (1, 80), (33, 100), (48, 48), (5, 5), (64, 20), (70, 71)]
    images = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes]
    assert len(images) > BATCH
    pixels = np.stack([letterbox(image, 32) for image in images])
    scores = np.concatenate(
        [predict(network, pixels[start : start + BATCH], "chexpert", device) for start in range(0, len(pixels), BATCH)]
    )
    cuts = thresholds[:, None, None]
    for segmented, score, (height, width) in zip(segmenter.images(images), scores, shapes, strict=True):
        box = content_box(height, width, 32)
        np.testing.assert_array_equal(segmented.masks, unletterbox(score, height, width) > cuts)
        np.testing.assert_array_equal(
            segmented.model_masks[:, box.rows, box.columns], (score > cuts)[:, box.rows, box.columns]
        )
        assert segmented.model_masks.sum() == segmented.model_masks[:, box.rows, box.columns].sum()
        np.testing.assert_array_equal(segmented.probability, score[:, box.rows, box.columns].max(axis=(1, 2)))
