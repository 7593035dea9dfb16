"""Files of tensors by name: safetensors, and what torch.save wrote."""

import argparse
import io
import json
from typing import Any

import torch

from chexseg_ray.errors import quoted
from chexseg_ray.pretraining.pickles import RefusedFileError, check_torch_file

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LONGEST_NAME = 500  # characters; real names have fewer than 100


def read_state(data: bytes) -> dict[str, torch.Tensor]:
    """Read the state dict in a file.

    Args:
        data: the file's bytes: safetensors, or what torch.save wrote, a state dict or a dict with a `state_dict`.

    Returns:
        The tensors by their names in the file: plain, dense and real, on the CPU.

    Raises:
        ValueError: the bytes hold no state dict, or more than plain weights. Code in the file is not executed.
    """
    found = _load(data)
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    is_state = isinstance(state, dict) and all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    if not is_state or not state:
        raise ValueError("it holds no state dict: names with a tensor each")
    for name, tensor in state.items():
        if not isinstance(name, str) or len(name) > _LONGEST_NAME:
            raise ValueError(f"it holds no state dict: {quoted(name)} is no name of a weight")
        if not is_plain(tensor):
            raise ValueError(f"{quoted(name)} is no plain tensor of real numbers: save dense tensors without views")
    return dict(state)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is dense and real, on the CPU, and has a value of its own for each of its elements.

    Args:
        tensor: any tensor.
    """
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex() or tensor.device.type != "cpu":
        return False
    return not any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def has_number_type(tensor: torch.Tensor, expected: torch.dtype) -> bool:
    """Whether a tensor's numbers are floating point, or of the type that the network's own entry has.

    Args:
        tensor: of a file.
        expected: type of the network's entry; BatchNorm's counter is int64.
    """
    return tensor.dtype in (expected, *_FLOATS)


def read_facts(data: bytes) -> dict[str, Any]:
    """Read what a record of this project reports of its network.

    Args:
        data: the file's bytes, of which read_state has read the tensors.

    Returns:
        Architecture, normalisation, pathologies and so on; empty for files that are no records of this project.

    Raises:
        ValueError: the facts are no JSON object, or one of those that are read has another type.
    """
    if not _is_safetensors(data):
        return {}
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = json.loads(header.get("__metadata__", {}).get("model", "{}"))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"its facts about the network cannot be read ({type(error).__name__})") from None
    if not isinstance(facts, dict):
        raise ValueError("its facts about the network are no JSON object")
    for name in ("encoder", "architecture", "normalisation"):
        if facts.get(name) is not None and not isinstance(facts[name], str):
            raise ValueError(f"its {name} is {quoted(facts[name])}, which is no text")
    order = facts.get("pathologies", [])
    if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
        raise ValueError(f"its pathologies are {quoted(order)}, which is no list of names")
    return facts


def _is_safetensors(data: bytes) -> bool:
    return data[8:9] == b"{"  # the header's length in 8 bytes, then JSON


def _load(data: bytes) -> Any:
    """Let safetensors or torch read a file, after a check of what it asks for.

    A damaged file makes torch raise more than ten kinds of error, IndexError and AssertionError among them, and its
    messages advise to read the file unsafely. So whatever is raised becomes one message of our own.

    Raises:
        ValueError: it cannot be read.
    """
    from safetensors.torch import load

    try:
        if _is_safetensors(data):
            return dict(load(data))
        check_torch_file(data)
        with torch.serialization.safe_globals([argparse.Namespace]):  # Lightning keeps its hyperparameters in one
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except RefusedFileError as error:
        raise ValueError(f"no weights can be read ({error})") from None
    except Exception as error:
        raise ValueError(f"no weights can be read (it is damaged: {type(error).__name__})") from None
