"""The multi-label image classifier (paper section 3.3.1): networks, label policies, masked loss, probabilities."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

IGNORED = -2  # a target that adds nothing to the loss


def build_classifier(architecture: str, num_pathologies: int, uncertainty: str) -> nn.Module:
    """A network with random weights: torchvision's DenseNet121 or ResNet18, or another encoder of smp under a linear head.

    Args:
        architecture: densenet121 | resnet18 | an encoder of smp. Names of weights are the encoder's own, the head's begin with HEADS.
        num_pathologies: K.
        uncertainty: with `threeclass` the head has 3 K outputs, per pathology in the order uncertain, negative, positive.
    """
    from torchvision import models

    outputs = num_pathologies * (3 if uncertainty == "threeclass" else 1)
    if architecture not in ("densenet121", "resnet18"):
        return PooledEncoder(architecture, outputs)
    network = models.densenet121 if architecture == "densenet121" else models.resnet18
    model: nn.Module = network(weights=None, num_classes=outputs)
    return model


class PooledEncoder(nn.Module):
    """The mean of an smp encoder's last features under a linear layer `fc`."""

    def __init__(self, architecture: str, outputs: int) -> None:
        super().__init__()
        from segmentation_models_pytorch.encoders import get_encoder

        encoder: Any = get_encoder(architecture, weights=None)
        self.encoder = encoder
        self.fc = nn.Linear(encoder.out_channels[-1], outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits float [B, outputs] of float [B, 3, S, S]."""
        out: torch.Tensor = self.fc(self.encoder(inputs)[-1].mean(dim=(2, 3)))
        return out


def trunk_of(model: nn.Module) -> nn.Module:
    """The part of a classifier whose names of weights are the encoder's own (torchvision's networks: the whole)."""
    return model.encoder if isinstance(model, PooledEncoder) else model


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


def masked_loss(logits: torch.Tensor, targets: torch.Tensor, count: int | None = None) -> torch.Tensor:
    """Cross-entropy averaged over the targets that are not IGNORED (0 when all are).

    Args:
        logits: float [B, K], or [B, 3 K] for threeclass.
        targets: integer [B, K].
        count: how many targets are not IGNORED in the whole batch, when this is a share of it; the shares' losses then add up.
    """
    keep = targets != IGNORED
    counted = keep.sum().clamp(min=1) if count is None else max(1, count)
    if logits.shape[1] == targets.shape[1]:
        each = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0).to(logits.dtype), reduction="none")
    else:
        each = F.cross_entropy(logits.view(-1, 3), (targets.clamp(min=-1) + 1).long().view(-1), reduction="none").view_as(targets)
    return (each * keep).sum() / counted


def probabilities(logits: torch.Tensor, num_pathologies: int) -> torch.Tensor:
    """P(present) float [B, K]: the sigmoid, or for threeclass the softmax over negative and positive alone."""
    if logits.shape[1] == num_pathologies:
        return logits.sigmoid()
    three = logits.view(len(logits), num_pathologies, 3)
    return (three[..., 2] - three[..., 1]).sigmoid()
