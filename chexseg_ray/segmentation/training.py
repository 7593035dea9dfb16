"""One update and one prediction of a segmentation network."""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from chexseg_ray.data.normalisation import network_input
from chexseg_ray.segmentation.losses import class_average_dice_loss
from chexseg_ray.updates.step import Forward, Sum, step_if_finite


def segmentation_update(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    pixels: torch.Tensor,
    masks: torch.Tensor,
    normalisation: str,
    smoothing: float,
    forward: Forward | None = None,
    sum_: Sum | None = None,
) -> torch.Tensor:
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
        The loss of the whole batch, a scalar on the model's device. If it is not finite, no weight has changed.
    """
    optimiser.zero_grad(set_to_none=True)
    logits = (forward or model)(network_input(pixels, normalisation))
    loss = class_average_dice_loss(logits, masks, smoothing, sum_)
    loss.backward()  # type: ignore[no-untyped-call]
    if sum_ is not None:
        sum_(p.grad for p in model.parameters() if p.grad is not None)
    step_if_finite(optimiser, loss)
    return loss.detach()


def unpacked(packed: torch.Tensor, size: int) -> torch.Tensor:
    """Turn bit-packed masks into arrays on their device, as numpy.unpackbits does.

    Args:
        packed: uint8 [B, K, ceil(S S / 8)].
        size: S, pixels of a side.

    Returns:
        bool [B, K, S, S].
    """
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(-1) >> shifts) & 1
    return bits.flatten(2)[..., : size * size].reshape(*packed.shape[:2], size, size).bool()


def predict(
    model: nn.Module, pixels: npt.NDArray[np.uint8], normalisation: str, device: torch.device
) -> npt.NDArray[np.float32]:
    """Predict as predicted_scores does, and bring the probabilities to the CPU, float32 [B, K, S, S] in [0, 1].

    Args:
        model: on `device`.
        pixels: uint8 [B, S, S].
        normalisation: a key of data.normalisation.STATISTICS.
        device: where the model runs.
    """
    out: npt.NDArray[np.float32] = predicted_scores(model, pixels, normalisation, device).cpu().numpy()
    return out


def predicted_scores(
    model: nn.Module, pixels: npt.NDArray[np.uint8], normalisation: str, device: torch.device
) -> torch.Tensor:
    """Predict probabilities in eval mode; the model's mode is restored afterwards.

    Args:
        model: on `device`.
        pixels: uint8 [B, S, S].
        normalisation: a key of data.normalisation.STATISTICS.
        device: where the model runs.

    Returns:
        float32 [B, K, S, S] in [0, 1], on `device`.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        scores: torch.Tensor = model(network_input(torch.tensor(pixels).to(device), normalisation)).sigmoid()
    model.train(was_training)
    return scores.to(torch.float32)
