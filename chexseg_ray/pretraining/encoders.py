"""Where encoder weights come from: the state of a trained classifier becomes the state of a segmentation encoder."""

from collections.abc import Mapping

import torch
from torch import nn

HEADS = ("fc.", "classifier.")


def encoder_state(classifier_state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A classifier's state dict without its head (torchvision's ResNet names are smp's)."""
    return {name: tensor for name, tensor in classifier_state.items() if not name.startswith(HEADS)}


def load_encoder(encoder: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load encoder weights, all of them.

    Raises:
        ValueError: naming the first keys that are missing, unexpected, of another shape or not finite.
    """
    own = encoder.state_dict()
    faults = [f"missing {name}" for name in own if name not in state]
    faults += [f"unexpected {name}" for name in state if name not in own]
    faults += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults += [f"{name} is not finite" for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if faults:
        raise ValueError(f"encoder weights do not fit, {len(faults)} faults: {'; '.join(faults[:3])}")
    nn.Module.load_state_dict(encoder, dict(state))
