"""Pixels of two masks, counted without arrays where one of them is empty or full."""

import numpy as np
import pytest

from chexseg_ray.data.masks import Rle, encode_rle
from chexseg_ray.evaluation.iou import mask_counts
from chexseg_ray.stages.counts import pair_counts

KINDS = ["empty", "full", "some"]


@pytest.mark.parametrize("predicted", KINDS)
@pytest.mark.parametrize("true", KINDS)
def test_counts_equal_those_of_whole_arrays(predicted: str, true: str, rng: np.random.Generator) -> None:
    shape = (13, 7)
    masks = {"empty": np.zeros(shape, bool), "full": np.ones(shape, bool), "some": rng.random(shape) > 0.6}
    own, truth = masks[predicted], masks[true]
    expected = tuple(mask_counts(own[None], truth[None])[0].tolist())
    rle = Rle(*shape, encode_rle(truth))
    assert pair_counts(own, rle) == expected
    if predicted != "some":
        assert pair_counts(predicted == "full", rle) == expected
