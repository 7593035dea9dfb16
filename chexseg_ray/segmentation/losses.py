"""The class average Dice loss (paper section 3.3.2)."""

import torch

from chexseg_ray.updates.step import Sum


def dice_sums(logits: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum p q, p and q over batch and pixels, where p is the sigmoid of the logits and q the mask.

    Args:
        logits: float [B, K, S, S].
        masks: bool or 0/1 of the same shape.

    Returns:
        Three tensors of the logits' dtype, each [K].
    """
    p, q = logits.sigmoid(), masks.to(logits.dtype)
    over = (0, 2, 3)
    return (p * q).sum(over), p.sum(over), q.sum(over)


def class_average_dice_loss(
    logits: torch.Tensor, masks: torch.Tensor, smoothing: float = 1.0, sum_: Sum | None = None
) -> torch.Tensor:
    """Compute 1 - mean over pathologies of (2 sum pq + smoothing) / (sum p + sum q + smoothing), as dice_sums sums.

    Args:
        logits: float [B, K, S, S].
        masks: bool or 0/1 of the same shape.
        smoothing: 1 in the released code; a pathology that is missing in the batch then has a Dice of 1 / (sum p + 1).
        sum_: sums tensors over the processes of a batch, where logits and masks are one process's share of it.

    Returns:
        A scalar in [0, 1], the loss of the whole batch. With `sum_` its gradients are those of this share only; their
        sum over the processes is the gradient of the whole batch.
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
