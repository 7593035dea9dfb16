"""The class average Dice loss (paper section 3.3.2)."""

from collections.abc import Callable, Iterable

import torch

Sum = Callable[[Iterable[torch.Tensor]], None]  # adds each tensor up over the processes that share a batch, in place


def dice_sums(logits: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per pathology over batch and pixels: sum of p q, sum of p, sum of q, each [K]; p the sigmoid of logits [B, K, S, S]."""
    p, q = logits.sigmoid(), masks.to(logits.dtype)
    over = (0, 2, 3)
    return (p * q).sum(over), p.sum(over), q.sum(over)


def class_average_dice_loss(logits: torch.Tensor, masks: torch.Tensor, smoothing: float = 1.0, sum_: Sum | None = None) -> torch.Tensor:
    """1 - mean over pathologies of (2 sum pq + smoothing) / (sum p + sum q + smoothing).

    Args:
        logits: float [B, K, S, S].
        masks: bool or 0/1 of the same shape.
        smoothing: 1 in the released code; a pathology that the batch lacks then gives 1 / (sum p + 1).
        sum_: for a share of a batch. The loss is the whole batch's; its gradients are this share's, to be added up.
    """
    sums = torch.stack(dice_sums(logits, masks))
    if sum_ is not None:
        whole = sums.detach().clone()
        sum_([whole])
        sums = sums + (whole - sums.detach())
    both, predicted, truth = sums
    dice = (2 * both + smoothing) / (predicted + truth + smoothing)
    loss: torch.Tensor = 1 - dice.mean()
    return loss
