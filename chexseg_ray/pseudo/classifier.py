"""The multi-label image classifier (paper section 3.3.1): networks, label policies, masked loss, probabilities."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

IGNORED = -2  # a target that adds nothing to the loss


def build_classifier(architecture: str, num_pathologies: int, uncertainty: str) -> nn.Module:
    """torchvision's DenseNet121 or ResNet18 with random weights.

    Args:
        architecture: densenet121 | resnet18.
        num_pathologies: K.
        uncertainty: with `threeclass` the head has 3 K outputs, per pathology in the order uncertain, negative, positive.
    """
    from torchvision import models

    outputs = num_pathologies * (3 if uncertainty == "threeclass" else 1)
    network = models.densenet121 if architecture == "densenet121" else models.resnet18
    model: nn.Module = network(weights=None, num_classes=outputs)
    return model


def head_name(architecture: str) -> str:
    """The name of the last linear layer in the state dict."""
    return "classifier" if architecture == "densenet121" else "fc"


def training_targets(labels: npt.NDArray[np.float64], uncertainty: str, blanks: str) -> npt.NDArray[np.int8]:
    """Labels as the CSV has them to targets.

    Args:
        labels: [N, K] of 1, 0, -1 (uncertain), NaN (blank).
        uncertainty: ignore | zeros | ones | threeclass, what an uncertain label becomes (CheXpert's four policies).
        blanks: zeros | ignore, what a blank becomes.

    Returns:
        int8 [N, K] of 0, 1, -1 (threeclass only) and IGNORED.
    """
    uncertain = {"ignore": IGNORED, "zeros": 0, "ones": 1, "threeclass": -1}[uncertainty]
    out = np.where(labels == -1, uncertain, np.nan_to_num(labels, nan=0 if blanks == "zeros" else IGNORED))
    return out.astype(np.int8)


def masked_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy averaged over the targets that are not IGNORED (0 when all are).

    Args:
        logits: float [B, K], or [B, 3 K] for threeclass.
        targets: integer [B, K].
    """
    keep = targets != IGNORED
    count = keep.sum().clamp(min=1)
    if logits.shape[1] == targets.shape[1]:
        each = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0).to(logits.dtype), reduction="none")
    else:
        each = F.cross_entropy(logits.view(-1, 3), (targets.clamp(min=-1) + 1).long().view(-1), reduction="none").view_as(targets)
    return (each * keep).sum() / count


def probabilities(logits: torch.Tensor, num_pathologies: int) -> torch.Tensor:
    """P(present) float [B, K]: the sigmoid, or for threeclass the softmax over negative and positive alone."""
    if logits.shape[1] == num_pathologies:
        return logits.sigmoid()
    three = logits.view(len(logits), num_pathologies, 3)
    return (three[..., 2] - three[..., 1]).sigmoid()
