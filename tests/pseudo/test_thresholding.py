"""From maps to masks."""

import numpy as np
import torch
import torch.nn.functional as F

from chexseg_ray.data.images import content_box
from chexseg_ray.pseudo.thresholding import min_max, normalised_content, otsu_mask, upsample


def test_upsampling_is_torchs_bilinear(rng: np.random.Generator) -> None:
    for shape, size in (((2, 3, 3), (96, 80)), ((1, 10, 10), (320, 320)), ((3, 6, 5), (64, 64)), ((1, 1, 1), (9, 7))):
        maps = rng.random(shape).astype(np.float32)
        other = F.interpolate(torch.from_numpy(maps)[None], size=size, mode="bilinear", align_corners=False)[0].numpy()
        assert np.abs(upsample(maps, *size) - other).max() < 1e-6


def test_a_constant_or_zero_map_gives_an_empty_mask() -> None:
    flat = np.stack([np.zeros((4, 4)), np.full((4, 4), 3.0), np.eye(4)]).astype(np.float32)
    scaled = min_max(flat)
    assert np.isfinite(scaled).all()
    assert [bool(otsu_mask(m).any()) for m in scaled] == [False, False, True]
    assert (scaled[:2] == 0).all()
    assert scaled[2].max() == 1


def test_padding_does_not_take_part_in_the_normalisation() -> None:
    cam = np.zeros((1, 4, 4))
    cam[0, 0] = 9.0  # all in the padding of a wide image
    cam[0, 1:3] = [[1, 2, 3, 4], [1, 2, 3, 5]]
    box = content_box(32, 64, 64)
    scores = normalised_content(cam, box, 64)
    assert scores.shape == (1, 32, 64)
    assert (scores.min(), scores.max()) == (0, 1)
