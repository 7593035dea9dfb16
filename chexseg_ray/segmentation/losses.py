"""The class average Dice loss (paper section 3.3.2)."""

import torch


def dice_sums(logits: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per pathology over batch and pixels: sum of p q, sum of p, sum of q, each [K]; p the sigmoid of logits [B, K, S, S]."""
    p, q = logits.sigmoid(), masks.to(logits.dtype)
    over = (0, 2, 3)
    return (p * q).sum(over), p.sum(over), q.sum(over)


def class_average_dice_loss(logits: torch.Tensor, masks: torch.Tensor, smoothing: float = 1.0) -> torch.Tensor:
    """1 - mean over pathologies of (2 sum pq + smoothing) / (sum p + sum q + smoothing).

    Args:
        logits: float [B, K, S, S].
        masks: bool or 0/1 of the same shape.
        smoothing: 1 in the released code; a pathology that the batch lacks then gives 1 / (sum p + 1).
    """
    both, predicted, truth = dice_sums(logits, masks)
    dice = (2 * both + smoothing) / (predicted + truth + smoothing)
    return 1 - dice.mean()
