"""From X-rays of any size to masks at their own."""

import numpy as np
import pytest
import torch
from torch import nn

from chexseg_ray.data.images import content_box, letterbox, resized, unletterbox
from chexseg_ray.segmentation.inference import BATCH, Segmented, Segmenter
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
        expected = unletterbox(score, height, width) > cuts
        np.testing.assert_array_equal(segmented.masks, expected)
        for k, mask in enumerate(expected):
            found = segmented.mask(k)
            assert np.array_equal(mask, found if isinstance(found, np.ndarray) else np.full(mask.shape, found))
        np.testing.assert_array_equal(
            segmented.model_masks[:, box.rows, box.columns], (score > cuts)[:, box.rows, box.columns]
        )
        assert segmented.model_masks.sum() == segmented.model_masks[:, box.rows, box.columns].sum()
        np.testing.assert_array_equal(segmented.probability, score[:, box.rows, box.columns].max(axis=(1, 2)))


@pytest.mark.parametrize(("height", "width"), [(70, 41), (9, 12)])
def test_a_mask_that_is_empty_or_full_is_known_without_resizing(height: int, width: int) -> None:
    cut = np.float32(0.3)
    above = np.nextafter(cut, np.float32(1))
    scores = np.full((4, 20, 12), cut)
    scores[1, 3, 4] = above  # a resized score may be above the threshold, or not
    scores[2] = above
    scores[3] = np.nan
    found = Segmented(scores, np.full(4, cut), np.zeros((4, 20, 20), dtype=bool), height, width)
    assert found.mask(0) is False
    assert found.mask(2) is True
    for k in range(4):
        np.testing.assert_array_equal(found.masks[k], resized(scores[k], height, width) > cut)
