"""One update and one prediction of a segmentation network."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from chexseg_ray.data.normalisation import network_input
from chexseg_ray.segmentation.losses import Sum, class_average_dice_loss


def segmentation_update(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    pixels: torch.Tensor,
    masks: torch.Tensor,
    normalisation: str,
    smoothing: float,
    forward: Callable[[torch.Tensor], torch.Tensor] | None = None,
    sum_: Sum | None = None,
) -> float:
    """Take one optimiser step on the class average Dice loss.

    Args:
        model: in train mode.
        optimiser: of the model's parameters.
        pixels: uint8 [B, S, S].
        masks: bool [B, K, S, S].
        normalisation: a key of data.normalisation.STATISTICS.
        smoothing: of the Dice loss.
        forward: the forward pass where replicas share the batch; None for the model itself.
        sum_: sums tensors over the replicas' processes; pixels and masks are then this process's share.

    Returns:
        The loss of the whole batch. If it is not finite, no weight has changed.
    """
    optimiser.zero_grad(set_to_none=True)
    logits = (forward or model)(network_input(pixels, normalisation))
    loss = class_average_dice_loss(logits, masks, smoothing, sum_)
    value = float(loss.detach())
    if np.isfinite(value):
        loss.backward()  # type: ignore[no-untyped-call]
        if sum_ is not None:
            sum_(p.grad for p in model.parameters() if p.grad is not None)
        optimiser.step()
    return value


def predict(
    model: nn.Module, pixels: npt.NDArray[np.uint8], normalisation: str, device: torch.device
) -> npt.NDArray[np.float32]:
    """Predict probabilities in eval mode; the model's mode is restored afterwards.

    Args:
        model: on `device`.
        pixels: uint8 [B, S, S].
        normalisation: a key of data.normalisation.STATISTICS.
        device: where the model runs.

    Returns:
        float32 [B, K, S, S] in [0, 1].
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        scores = model(network_input(torch.tensor(pixels).to(device), normalisation)).sigmoid()
    model.train(was_training)
    out: npt.NDArray[np.float32] = scores.to(torch.float32).cpu().numpy()
    return out
