"""Encoder weights: what networks they are of, and one reader for every file they come in.

Reads torchvision's, timm's and smp's state dicts, CheXpert's Lightning checkpoints (`model.model.`), MoCo-CXR's (`module.encoder_q.`), whole
segmentation networks (`encoder.`) and this project's records. Nothing in a file is executed, and nothing is downloaded here.
"""

import argparse
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from chexseg_ray.data.normalisation import STATISTICS

HEADS = ("fc.", "_fc.", "classifier.", "head.", "linear.", "last_linear.")
# where a file keeps the encoder, by whom it is written so, and the statistics that its images were normalised with
PREFIXES = {
    "": ("torchvision, timm or smp", "imagenet"),
    "model.model.": ("CheXpert's Lightning classifier", "imagenet"),
    "module.encoder_q.": ("MoCo-CXR", "chexpert"),
    "encoder_q.": ("MoCo", "chexpert"),
    "encoder.": ("a segmentation network of smp", "imagenet"),
    "module.": ("a DataParallel network", "imagenet"),
    "model.": ("a Lightning network", "imagenet"),
}
_TRACKED = "num_batches_tracked"
_TIMM_STAGE = re.compile(r"_(\d+)\.")  # smp's `stages_0.` is the file's `stages.0.`
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")


@dataclass(frozen=True)
class EncoderWeights:
    """A state dict with the encoder's own names, the name of its normalisation statistics, and what was found in the file."""

    state: dict[str, torch.Tensor]
    normalisation: str
    provenance: dict[str, Any]


def build_encoder(architecture: str) -> nn.Module:
    """An smp (or timm, `tu-...`) encoder with random weights: float [B, 3, S, S] to a list of features, the last at S / 32.

    Raises:
        ValueError: smp knows no such encoder.
    """
    from segmentation_models_pytorch.encoders import get_encoder

    if architecture.startswith("timm-"):
        raise ValueError(f"{architecture}: smp has given up these names: write tu-{architecture.removeprefix('timm-')}")
    try:
        encoder: nn.Module = get_encoder(architecture, weights=None)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{architecture}: {' '.join(str(error).strip(chr(39)).split())[:200]}") from None
    return encoder


def encoder_channels(architecture: str) -> int:
    """Channels of the last features."""
    encoder: Any = build_encoder(architecture)
    return int(encoder.out_channels[-1])


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
        with torch.serialization.safe_globals([argparse.Namespace]):  # what Lightning keeps its hyperparameters in
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds a {foreign.group(1)}: save its state_dict alone" if foreign else (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"no weights can be read ({reason})") from None
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(state, dict) or not state or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError("it holds no state dict: names with a tensor each")
    return dict(state)


def read_facts(data: bytes) -> dict[str, Any]:
    """What a record of this project says of its network (architecture, normalisation, pathologies, ...); empty for other files."""
    if data[8:9] != b"{":
        return {}
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts: dict[str, Any] = json.loads(header.get("__metadata__", {}).get("model", "{}"))
    return facts


def read_encoder(
    data: bytes, encoder: nn.Module, architecture: str, pathologies: Sequence[str] = (), normalisation: str | None = None
) -> EncoderWeights:
    """The weights of one encoder out of a file, whoever wrote it.

    Args:
        data: the file.
        encoder: the network they are for; not changed.
        architecture: its name, which must be the one that a record of this project names.
        pathologies: the study's, in channel order; a record that has the same ones in another order is refused.
        normalisation: a name of data.normalisation.STATISTICS, for a file that does not say; otherwise the file's, or its writer's usual one.

    Returns:
        Every weight of the encoder. `provenance` counts the names that were `loaded`, and lists the names of the encoder that the file
        `lacks` (num_batches_tracked alone may be lacking) and, shortened to their beginnings, the parts of the file that were `left_out`.

    Raises:
        ValueError: no file of weights; another architecture; pathologies in another order; a name that is missing or unexpected, a wrong
            shape, a value that is not finite.
    """
    state, facts = read_state(data), read_facts(data)
    named = facts.get("encoder") or facts.get("architecture")
    if named is not None and named != architecture:
        raise ValueError(f"it is a {named}'s, not a {architecture}'s")
    order = facts.get("pathologies", [])
    if list(pathologies) != order and sorted(pathologies) == sorted(order) and order:
        raise ValueError(f"it was trained on the pathologies in another order ({order[0]} first), so its channels are not this study's")
    state = {_OLD_DENSENET.sub(r"\1\2.", name): tensor for name, tensor in state.items()}
    prefix, places = _places(encoder.state_dict(), state)
    found = {name: state[place] for name, place in places.items()}
    rest = [name for name in state if name not in set(places.values())]
    parts = {place.removeprefix(prefix).split(".")[0] for place in places.values()}
    timm = architecture.startswith("tu-")  # built without the parts that make no features, whatever these are called

    def no_encoder(name: str) -> bool:
        own = name.removeprefix(prefix)
        return not name.startswith(prefix) or own.startswith(HEADS) or (timm and own.split(".")[0] not in parts)

    left_out = [name for name in rest if no_encoder(name)]
    unexpected = {name: state[name] for name in rest if name not in set(left_out)}
    check_encoder(encoder, found | unexpected)
    writer, usual = PREFIXES[prefix]
    chosen = facts.get("normalisation") or normalisation or usual
    if chosen not in STATISTICS:
        raise ValueError(f"it was trained on images normalised as {chosen!r}, which is none of {', '.join(STATISTICS)}")
    provenance = {
        "format": "chexseg_ray" if facts else writer,
        "loaded": len(found),
        "lacks": [name for name in encoder.state_dict() if name not in found],
        "left_out": _summary(left_out, prefix),
        "normalisation": chosen,
    }
    return EncoderWeights(found, chosen, provenance)


def _places(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, str]]:
    """The prefix before the encoder's names in a file, and the name in the file of each own one that is there."""
    spellings = [{name: name for name in own}, {name: _TIMM_STAGE.sub(r".\1.", name.removeprefix("model.")) for name in own}]
    found = [(p, {name: p + there for name, there in spelled.items() if p + there in state}) for p in PREFIXES for spelled in spellings]
    prefix, places = max(found, key=lambda each: len(each[1]))
    if not places:
        raise ValueError(f"none of the encoder's {len(own)} names is in it, such as {next(iter(own))}; the file's begin with {next(iter(state))}")
    return prefix, places


def _summary(names: Sequence[str], prefix: str) -> list[str]:
    """`fc. (2)`, `module.encoder_k. (124)`, `queue`: what names begin with, and how many do."""
    lengths = [prefix.count(".") + 1 if name.startswith(prefix) else 2 for name in names]
    first = [".".join(name.split(".")[:length]) for name, length in zip(names, lengths, strict=True)]
    return [beginning if beginning in names else f"{beginning}. ({first.count(beginning)})" for beginning in dict.fromkeys(first)]


def check_encoder(encoder: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse a state that is not exactly an encoder's. (BatchNorm's `num_batches_tracked`, which old files lack and nothing reads, may be missing.)

    Raises:
        ValueError: naming the first keys that are missing, unexpected, of another shape or not finite.
    """
    own = encoder.state_dict()
    faults = [f"missing {name}" for name in own if name not in state and not name.endswith(_TRACKED)]
    faults += [f"unexpected {name}" for name in state if name not in own]
    faults += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults += [f"{name} is not finite" for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if faults:
        raise ValueError(f"encoder weights do not fit, {len(faults)} faults: {'; '.join(faults[:3])}")


def load_encoder(encoder: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load encoder weights, all of them. Raises ValueError as check_encoder does."""
    check_encoder(encoder, state)
    tracked = {name: tensor for name, tensor in encoder.state_dict().items() if name.endswith(_TRACKED)}
    nn.Module.load_state_dict(encoder, tracked | dict(state))
