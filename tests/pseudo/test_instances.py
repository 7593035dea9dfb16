"""Grouping cells by the centroid that they point to, and instance-wise CAMs."""

import numpy as np
import torch

from chexseg_ray.data.images import ContentBox
from chexseg_ray.pseudo.instances import follow, group_by_centroid, instance_cams
from chexseg_ray.pseudo.propagation import propagate_cams
from chexseg_ray.pseudo.random_walk import WalkSettings

SIZE = 24


def two_discs() -> tuple[np.ndarray, np.ndarray]:
    """Two discs that touch, as a mask [h, w] of 0, 1, 2, and the field that points to their centroids."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    mask = np.zeros((SIZE, SIZE), dtype=int)
    field = np.zeros((2, SIZE, SIZE), dtype=np.float32)
    for number, centre in enumerate([(8, 7), (13, 16)], start=1):
        own = np.hypot(rows - centre[0], columns - centre[1]) <= 5
        mask[own] = number
        field[:, own] = np.stack([centre[0] - rows, centre[1] - columns])[:, own]
    return mask, field


def test_vectors_are_followed_to_their_end() -> None:
    field = np.zeros((2, 1, 6), dtype=np.float32)
    field[1, 0] = [1, 1, 2, 0, -1, -9]
    assert follow(field)[1].tolist() == [[3] * 6]
    assert not follow(field)[0].any()


def test_cells_that_point_to_one_centroid_are_one_group() -> None:
    mask, field = two_discs()
    groups = group_by_centroid(field)
    first, second = np.unique(groups[mask == 1]), np.unique(groups[mask == 2])
    assert len(first) == len(second) == 1
    assert first != second


def test_instance_cams_split_the_cam_and_add_up_to_it(rng: np.random.Generator) -> None:
    mask, field = two_discs()
    cam = (0.2 * rng.random((SIZE, SIZE))).astype(np.float32)
    cam[mask == 1] += 1.0
    cam[mask == 2] += 0.5
    parts = instance_cams(cam, field, 0.3)
    assert np.allclose(parts.sum(axis=0), cam)
    assert len(parts) == 3, "two instances and what is left over"
    assert sorted(float((part > 0).sum()) for part in parts[:2]) == sorted([(mask == 1).sum(), (mask == 2).sum()])
    assert len(instance_cams(cam * 0, field, 0.3)) == 1


def test_each_instance_is_scaled_apart_and_they_are_merged_by_maximum() -> None:
    mask, field = two_discs()
    cams = torch.zeros(1, 2, SIZE, SIZE)
    cams[0, 0][torch.from_numpy(mask == 1)] = 1.0
    cams[0, 0][torch.from_numpy(mask == 2)] = 0.4
    boundary = torch.full((1, SIZE, SIZE), 0.3)
    box = [ContentBox(0, 0, SIZE, SIZE)]
    walk = WalkSettings(3, 5.0, 8)
    whole = propagate_cams(cams, boundary, None, box, walk, 0.3)[0]
    apart = propagate_cams(cams, boundary, torch.from_numpy(field)[None], box, walk, 0.3)[0]
    second = torch.from_numpy(mask == 2)
    assert float(whole[0][second].median()) < 0.6, "the weaker instance stays weaker"
    assert float(apart[0][second].max()) == 1, "by itself it is as strong as the other"
    assert float(apart[0].max()) == 1
    assert (apart[1] == 0).all()
