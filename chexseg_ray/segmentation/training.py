"""One update and one prediction of a segmentation network."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from chexseg_ray.data.normalisation import network_input
from chexseg_ray.segmentation.losses import class_average_dice_loss


def segmentation_update(
    model: nn.Module, optimiser: torch.optim.Optimizer, pixels: torch.Tensor, masks: torch.Tensor, normalisation: str, smoothing: float
) -> float:
    """One step on the class average Dice loss.

    Args:
        model: in train mode.
        optimiser: of its parameters.
        pixels: uint8 [B, S, S].
        masks: bool [B, K, S, S].
        normalisation: a name of data.normalisation.STATISTICS.
        smoothing: of the Dice loss.

    Returns:
        The loss. When it is not finite, no weight has changed.
    """
    optimiser.zero_grad(set_to_none=True)
    loss = class_average_dice_loss(model(network_input(pixels, normalisation)), masks, smoothing)
    value = float(loss.detach())
    if np.isfinite(value):
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return value


def predict(model: nn.Module, pixels: npt.NDArray[np.uint8], normalisation: str, device: torch.device) -> npt.NDArray[np.float32]:
    """Probabilities float32 [B, K, S, S] of uint8 [B, S, S] in eval mode; the model's mode is put back."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        scores = model(network_input(torch.tensor(pixels).to(device), normalisation)).sigmoid()
    model.train(was_training)
    out: npt.NDArray[np.float32] = scores.to(torch.float32).cpu().numpy()
    return out
