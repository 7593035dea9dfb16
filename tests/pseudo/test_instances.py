"""Grouping cells by the centroid that they point to, and instance-wise CAMs."""

import numpy as np
import pytest
import torch
from skimage.measure import label

from chexseg_ray.data.images import ContentBox, letterbox, letterbox_mask
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.data.phantom import PhantomImage, render
from chexseg_ray.pseudo.affinity import irnet_losses
from chexseg_ray.pseudo.instances import follow, group_by_centroid, instance_cams
from chexseg_ray.pseudo.ir_labels import ir_labels
from chexseg_ray.pseudo.irnet import IRNet
from chexseg_ray.pseudo.pairs import PairLabels
from chexseg_ray.pseudo.propagation import propagate_cams
from chexseg_ray.pseudo.random_walk import WalkSettings

SIZE = 24


def two_discs() -> tuple[np.ndarray, np.ndarray]:
    """Two discs that touch, as a mask [h, w] of 0, 1, 2, and the field that points to their centroids."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    mask = np.zeros((SIZE, SIZE), dtype=int)
    field = np.zeros((2, SIZE, SIZE), dtype=np.float32)
    for number, centre in enumerate([(8, 7), (13, 16)], start=1):
        disc = np.hypot(rows - centre[0], columns - centre[1]) <= 5
        mask[disc] = number
        field[:, disc] = np.stack([centre[0] - rows, centre[1] - columns])[:, disc]
    return mask, field


def test_vectors_are_followed_to_their_end() -> None:
    field = np.zeros((2, 1, 6), dtype=np.float32)
    field[1, 0] = [1, 1, 2, 0, -1, -9]
    assert follow(field)[1].tolist() == [[3] * 6]
    assert not follow(field)[0].any()


def test_cells_that_point_to_one_centroid_are_one_group() -> None:
    mask, field = two_discs()
    groups = group_by_centroid(field, mask > 0)
    first, second = np.unique(groups[mask == 1]), np.unique(groups[mask == 2])
    assert len(first) == len(second) == 1
    assert first != second
    assert (groups[mask == 0] == 0).all(), "the background leads to no centroid"
    together = group_by_centroid(field * 0, mask > 0)
    assert together.max() == 1, "without vectors, what touches is one"


@pytest.mark.parametrize(("gap", "instances"), [(1, 1), (2, 1), (3, 2)])
def test_ends_with_less_than_three_cells_between_them_are_one(gap: int, instances: int) -> None:
    foreground = np.zeros((5, 20), dtype=bool)
    foreground[2, 4] = foreground[2, 5 + gap] = True
    groups = group_by_centroid(np.zeros((2, 5, 20), dtype=np.float32), foreground)
    assert len(np.unique(groups[foreground])) == instances


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


def two_opacities(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a phantom with an opacity in each lung: its pixels, and how much of each cell is opaque.

    Returns:
        Pixels uint8 [96, 96], and the opaque share of each cell, float32 [24, 24] in [0, 1].
    """
    path, findings = f"CheXpert-v1.0/train/p{number}/a.jpg", frozenset({"Edema", "Airspace Opacity"})
    image = PhantomImage(path, "train", (7, number), (8, number), False, findings, "Female", 50)
    grey, truth, _ = render(image, 160)
    share = letterbox_mask(truth["Edema"], 96).reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3))
    return letterbox(grey, 96), share.astype(np.float32)


@pytest.mark.slow
def test_a_trained_displacement_branch_tells_two_opacities_of_a_phantom_apart() -> None:
    """Trained on 20 phantoms, asked about six others."""
    torch.manual_seed(0)
    images, cams = (np.stack(arrays) for arrays in zip(*(two_opacities(number) for number in range(26)), strict=True))
    box, gate = ContentBox(0, 0, SIZE, SIZE), np.ones(1, dtype=bool)
    labels = torch.from_numpy(np.stack([ir_labels(cam[None], gate, box, SIZE, 0.30, 0.05) for cam in cams]))
    model = IRNet(displacement=True).train()
    stages = model.trunk(network_input(torch.from_numpy(images), "imagenet"))  # frozen, so once is enough
    branch, updates = model.branches["displacement"], 150
    optimiser = torch.optim.SGD(branch.parameters(), lr=1.5)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, updates, 0.9)
    rng = np.random.default_rng(0)
    for _ in range(updates):
        rows = rng.choice(20, 8, replace=False)
        losses = irnet_losses(
            torch.zeros(8, SIZE, SIZE), branch([s[rows] for s in stages]), PairLabels(labels[rows], 4)
        )
        optimiser.zero_grad()
        (losses.foreground + losses.background).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        fields = branch.eval()(stages)
        branch.mean.copy_(fields[:20].permute(0, 2, 3, 1)[labels[:20, 0] == 1].mean(dim=0))
        fields = branch(stages).numpy()
    apart = 0
    for cam, field in zip(cams[20:], fields[20:], strict=True):
        foreground = cam > 0.3
        regions = label(foreground)
        largest = np.argsort(np.bincount(regions[foreground]))[-2:]
        groups = group_by_centroid(field, foreground)
        first, second = (np.bincount(groups[regions == number]) for number in largest)
        modes = first.argmax(), second.argmax()
        apart += modes[0] != modes[1] and min(first.max() / first.sum(), second.max() / second.sum()) > 0.9
    assert apart >= 5, f"{apart} of 6"
