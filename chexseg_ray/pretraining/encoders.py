"""Where encoder weights come from: files of weights, and the state of a trained classifier as the state of an encoder."""

import io
from collections.abc import Mapping
from pickle import UnpicklingError

import torch
from torch import nn

HEADS = ("fc.", "classifier.")


def encoder_state(classifier_state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A classifier's state dict without its head (torchvision's ResNet names are smp's)."""
    return {name: tensor for name, tensor in classifier_state.items() if not name.startswith(HEADS)}


def read_state(data: bytes) -> dict[str, torch.Tensor]:
    """The state dict in a file's bytes: safetensors, or what torch.save wrote (a state dict, alone or as `state_dict`).

    Raises:
        ValueError: the bytes hold no state dict, or something that is not only weights (which is not executed).
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if data[8:9] == b"{":  # safetensors: the header's length in 8 bytes, then JSON
            return dict(load(data))
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"no weights can be read ({reason})") from None
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(state, dict) or not state or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError("it holds no state dict: names with a tensor each")
    return dict(state)


def load_encoder(encoder: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load encoder weights, all of them. (BatchNorm's `num_batches_tracked`, which old files lack and nothing reads, may be missing.)

    Raises:
        ValueError: naming the first keys that are missing, unexpected, of another shape or not finite.
    """
    own = encoder.state_dict()
    state = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")} | dict(state)
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
    nn.Module.load_state_dict(encoder, state)
