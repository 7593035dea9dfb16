"""The class average Dice loss against its formula and finite differences."""

import numpy as np
import torch

from chexseg_ray.segmentation.losses import class_average_dice_loss


def test_the_loss_is_the_formula_per_class_over_batch_and_pixels() -> None:
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.rand(2, 3, 5, 4) > 0.6
    p, q = 1 / (1 + np.exp(-logits.numpy())), masks.numpy().astype(float)
    dice = []
    for k in range(3):
        both = sum(p[b, k, i, j] * q[b, k, i, j] for b in range(2) for i in range(5) for j in range(4))
        dice.append((2 * both + 1) / (p[:, k].sum() + q[:, k].sum() + 1))
    assert abs(float(class_average_dice_loss(logits, masks)) - (1 - np.mean(dice))) < 1e-12


def test_gradients_are_finite_differences() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    masks = torch.rand(2, 2, 3, 3) > 0.5
    masks[:, 1] = False  # a class that the batch lacks
    assert torch.autograd.gradcheck(lambda x: class_average_dice_loss(x, masks), (logits,))


def test_an_absent_class_costs_little_once_it_is_predicted_absent() -> None:
    logits = torch.full((1, 1, 8, 8), -20.0)
    assert float(class_average_dice_loss(logits, torch.zeros(1, 1, 8, 8, dtype=torch.bool))) < 1e-6
    assert float(class_average_dice_loss(-logits, torch.zeros(1, 1, 8, 8, dtype=torch.bool))) > 0.98
