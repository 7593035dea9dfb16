"""The multi-label image classifier (paper section 3.3.1): networks, label policies, masked loss and probabilities."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from chexseg_ray.data.encoder_names import check_encoder_name
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.updates.step import Forward, Sum, step_if_finite

IGNORED = -2  # a target that adds nothing to the loss


def build_classifier(architecture: str, num_pathologies: int, uncertainty: str) -> nn.Module:
    """Build a network with random weights: torchvision's DenseNet121 or ResNet18, or a PooledEncoder.

    Args:
        architecture: densenet121 | resnet18 | an encoder of smp.
        num_pathologies: K.
        uncertainty: the policy for uncertain labels; with `threeclass` the head has 3 K outputs, for each pathology in
            the order uncertain, negative, positive.

    Returns:
        The network: float [B, 3, S, S] to logits float [B, K] or [B, 3 K].
    """
    from torchvision import models

    outputs = num_pathologies * (3 if uncertainty == "threeclass" else 1)
    if architecture not in ("densenet121", "resnet18"):
        return PooledEncoder(architecture, outputs)
    network = models.densenet121 if architecture == "densenet121" else models.resnet18
    model: nn.Module = network(weights=None, num_classes=outputs)
    return model


class PooledEncoder(nn.Module):
    """An encoder of smp, the mean over the positions of its last features, and a linear layer `fc`.

    Args:
        architecture: an encoder of smp.
        outputs: how many logits `fc` gives.
    """

    def __init__(self, architecture: str, outputs: int) -> None:
        super().__init__()
        from segmentation_models_pytorch.encoders import get_encoder

        check_encoder_name(architecture)
        encoder: Any = get_encoder(architecture, weights=None)
        self.encoder = encoder
        self.fc = nn.Linear(encoder.out_channels[-1], outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The logits float [B, outputs] of inputs float [B, 3, S, S]."""
        logits: torch.Tensor = self.fc(self.encoder(inputs)[-1].mean(dim=(2, 3)))
        return logits


def trunk_of(model: nn.Module) -> nn.Module:
    """Return the part of a classifier whose weights have the encoder's names.

    Args:
        model: a PooledEncoder, whose part is its encoder; or a network of torchvision, which is returned whole.
    """
    return model.encoder if isinstance(model, PooledEncoder) else model


def training_targets(labels: npt.NDArray[np.float64], uncertainty: str, blanks: str) -> npt.NDArray[np.int8]:
    """Turn the labels of a CSV into training targets.

    Args:
        labels: float64 [N, K] of 1, 0, -1 (uncertain) and NaN (blank).
        uncertainty: ignore | zeros | ones | threeclass, what an uncertain label becomes (CheXpert's four policies).
        blanks: zeros | ignore, what a blank becomes.

    Returns:
        int8 [N, K] of 0, 1, -1 (threeclass only) and IGNORED.
    """
    uncertain = {"ignore": IGNORED, "zeros": 0, "ones": 1, "threeclass": -1}[uncertainty]
    blank = 0 if blanks == "zeros" else IGNORED
    return np.where(labels == -1, uncertain, np.nan_to_num(labels, nan=blank)).astype(np.int8)


def masked_loss(logits: torch.Tensor, targets: torch.Tensor, count: torch.Tensor | None = None) -> torch.Tensor:
    """The cross-entropy averaged over the targets that are not IGNORED.

    Args:
        logits: float [B, K], or [B, 3 K] for threeclass.
        targets: integer [B, K], as training_targets makes them.
        count: how many targets of the whole batch are not IGNORED, an integer scalar, when the other arguments are a
            share of it; the losses of the shares then add up to the batch's.

    Returns:
        A scalar; 0 when every target is IGNORED.
    """
    keep = targets != IGNORED
    counted = (keep.sum() if count is None else count).clamp(min=1)
    if logits.shape[1] == targets.shape[1]:
        losses = F.binary_cross_entropy_with_logits(logits, targets.clamp(min=0).to(logits.dtype), reduction="none")
    else:
        classes = (targets.clamp(min=-1) + 1).long()
        losses = F.cross_entropy(logits.view(-1, 3), classes.view(-1), reduction="none").view_as(targets)
    return (losses * keep).sum() / counted


def classifier_update(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    count: torch.Tensor,
    normalisation: str,
    forward: Forward | None = None,
    sum_: Sum | None = None,
) -> torch.Tensor:
    """Take one training step on the masked cross-entropy.

    Args:
        model: the classifier, in train mode.
        optimiser: the optimiser of its parameters.
        pixels: uint8 [B, S, S].
        targets: int8 [B, K], as training_targets makes them.
        count: how many targets of the whole batch are not IGNORED, an integer scalar.
        normalisation: a name of data.normalisation.STATISTICS.
        forward: the pass through the model when replicas share the batch; without it the model is called.
        sum_: adds tensors up over the replicas' processes; pixels and targets are then this process's share.

    Returns:
        The whole batch's loss, a scalar on the model's device. When it is not finite, no weight has changed.
    """
    optimiser.zero_grad(set_to_none=True)
    if forward is None:
        forward = model
    logits = forward(network_input(pixels, normalisation))
    loss = masked_loss(logits, targets, count)
    whole = loss.detach().clone()
    if sum_ is not None:
        sum_([whole])
    loss.backward()  # type: ignore[no-untyped-call]
    if sum_ is not None:
        sum_(p.grad for p in model.parameters() if p.grad is not None)
    step_if_finite(optimiser, whole)
    return whole


def probabilities(logits: torch.Tensor, num_pathologies: int) -> torch.Tensor:
    """The probability that each pathology is present.

    This is the sigmoid of the logit, or for threeclass the softmax over negative and positive only.

    Args:
        logits: float [B, K], or [B, 3 K] for threeclass.
        num_pathologies: K.

    Returns:
        float [B, K] in [0, 1].
    """
    if logits.shape[1] == num_pathologies:
        return logits.sigmoid()
    three = logits.view(len(logits), num_pathologies, 3)
    return (three[..., 2] - three[..., 1]).sigmoid()
