"""Encoders of smp, and one reader for every file that holds weights for them.

The reader takes state dicts of torchvision, timm and smp, CheXpert's Lightning checkpoints (`model.model.`), those of
MoCo-CXR (`module.encoder_q.`), whole segmentation networks (`encoder.`), and this project's records. Nothing in a file
is executed, and nothing is downloaded here.
"""

import argparse
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from chexseg_ray.data.normalisation import STATISTICS

HEADS = ("fc.", "_fc.", "classifier.", "head.", "linear.", "last_linear.")
# the prefix of the encoder's names in a file: who writes such files, and the statistics that they usually go with
PREFIXES = {
    "": ("torchvision, timm or smp", "imagenet"),
    "model.model.": ("CheXpert's Lightning classifier", "imagenet"),
    "module.encoder_q.": ("MoCo-CXR", "chexpert"),
    "encoder_q.": ("MoCo", "chexpert"),
    "encoder.": ("a segmentation network of smp", "imagenet"),
    "module.": ("a DataParallel network", "imagenet"),
    "model.": ("a Lightning network", "imagenet"),
}
_TRACKED = "num_batches_tracked"  # BatchNorm's counter; old files do not have it, and nothing reads it
_TIMM_STAGE = re.compile(r"_(\d+)\.")  # smp's `stages_0.` is the file's `stages.0.`
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")  # now `norm1.`, in old files `norm.1.`


@dataclass(frozen=True)
class EncoderWeights:
    """The weights of one encoder, as read_encoder finds them in a file.

    Args:
        state: the state dict, with the encoder's names.
        normalisation: a name of data.normalisation.STATISTICS, of the images that the weights were trained on.
        provenance: what was found in the file, as it goes into a record.
    """

    state: dict[str, torch.Tensor]
    normalisation: str
    provenance: dict[str, Any]


def build_encoder(architecture: str) -> nn.Module:
    """Build an encoder with random weights.

    Args:
        architecture: smp's name of the encoder; `tu-...` for one of timm.

    Returns:
        The encoder: float [B, 3, S, S] to a list of features, the last of them at S / 32.

    Raises:
        ValueError: smp knows no such encoder.
    """
    from segmentation_models_pytorch.encoders import get_encoder

    if architecture.startswith("timm-"):
        raise ValueError(f"{architecture}: smp has given up these names: write tu-{architecture.removeprefix('timm-')}")
    try:
        encoder: nn.Module = get_encoder(architecture, weights=None)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).strip("'").split())[:200]
        raise ValueError(f"{architecture}: {reason}") from None
    return encoder


def encoder_channels(architecture: str) -> int:
    """Return the number of channels of an encoder's last features.

    Args:
        architecture: smp's name of the encoder; `tu-...` for one of timm.

    Raises:
        ValueError: smp knows no such encoder.
    """
    encoder: Any = build_encoder(architecture)
    return int(encoder.out_channels[-1])


def read_state(data: bytes) -> dict[str, torch.Tensor]:
    """Read the state dict in a file.

    Args:
        data: the file's bytes: safetensors, or what torch.save wrote, a state dict or a dict with a `state_dict`.

    Returns:
        The tensors by their names in the file.

    Raises:
        ValueError: the bytes hold no state dict, or more than plain weights. Code in the file is not executed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if data[8:9] == b"{":  # safetensors: the header's length in 8 bytes, then JSON
            return dict(load(data))
        with torch.serialization.safe_globals([argparse.Namespace]):  # Lightning keeps its hyperparameters in one
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign:
            reason = f"it holds a {foreign.group(1)}: save only its state_dict"
        elif str(error):
            reason = str(error).splitlines()[0]
        else:
            reason = type(error).__name__
        raise ValueError(f"no weights can be read ({reason})") from None
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    is_state = isinstance(state, dict) and all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    if not is_state or not state:
        raise ValueError("it holds no state dict: names with a tensor each")
    return dict(state)


def read_facts(data: bytes) -> dict[str, Any]:
    """Read what a record of this project reports of its network.

    Args:
        data: the file's bytes.

    Returns:
        Architecture, normalisation, pathologies and so on; empty for files that are no records of this project.
    """
    if data[8:9] != b"{":
        return {}
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    facts: dict[str, Any] = json.loads(header.get("__metadata__", {}).get("model", "{}"))
    return facts


def read_encoder(
    data: bytes,
    encoder: nn.Module,
    architecture: str,
    pathologies: Sequence[str] = (),
    normalisation: str | None = None,
) -> EncoderWeights:
    """Read the weights of one encoder from a file, whoever wrote it.

    Args:
        data: the file's bytes.
        encoder: the network that the weights are for; it is not changed.
        architecture: the encoder's name; a record of this project must name the same.
        pathologies: the study's, in channel order; a record that has the same ones in another order is refused.
        normalisation: a name of data.normalisation.STATISTICS, for a file that names none; without it, such a file gets
            the usual one of its writer.

    Returns:
        All weights of the encoder. `provenance` has the `format`, the number of names that were `loaded`, the encoder's
        names that are missing in the file (`lacks`; only num_batches_tracked may be), the beginnings of the file's
        names that were `left_out`, and the `normalisation`.

    Raises:
        ValueError: the file holds no weights; the weights are of another architecture, or of pathologies in another
            order; a name is missing or unexpected, a shape is wrong, or a value is not finite.
    """
    state, facts = read_state(data), read_facts(data)
    recorded = facts.get("encoder") or facts.get("architecture")
    if recorded is not None and recorded != architecture:
        raise ValueError(f"it is a {recorded}'s, not a {architecture}'s")
    order = facts.get("pathologies", [])
    if list(pathologies) != order and sorted(pathologies) == sorted(order) and order:
        raise ValueError(
            f"it was trained on the pathologies in another order ({order[0]} first), "
            "so its channels are not this study's"
        )
    state = {_OLD_DENSENET.sub(r"\1\2.", name): tensor for name, tensor in state.items()}
    prefix, file_names = _names_in_file(encoder.state_dict(), state)
    found = {name: state[file_name] for name, file_name in file_names.items()}
    used = set(file_names.values())
    rest = [name for name in state if name not in used]
    parts = {file_name.removeprefix(prefix).split(".")[0] for file_name in used}
    timm = architecture.startswith("tu-")  # built without the parts that make no features, whatever these are called

    def is_foreign(name: str) -> bool:
        """Whether a name in the file belongs to a head or to another network, not to the encoder."""
        bare = name.removeprefix(prefix)
        return not name.startswith(prefix) or bare.startswith(HEADS) or (timm and bare.split(".")[0] not in parts)

    left_out = [name for name in rest if is_foreign(name)]
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


def _names_in_file(expected: Iterable[str], state: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, str]]:
    """Find the encoder's names in a file.

    Args:
        expected: the encoder's names.
        state: the file's tensors by name.

    Returns:
        The prefix of the encoder's names in the file, and the name in the file of each name that is there.

    Raises:
        ValueError: none is there.
    """
    names = list(expected)
    spellings = [
        {name: name for name in names},
        {name: _TIMM_STAGE.sub(r".\1.", name.removeprefix("model.")) for name in names},
    ]
    best_prefix = ""
    best: dict[str, str] = {}
    for prefix in PREFIXES:
        for spelling in spellings:
            found = {name: prefix + spelled for name, spelled in spelling.items() if prefix + spelled in state}
            if len(found) > len(best):
                best_prefix, best = prefix, found
    if not best:
        raise ValueError(
            f"none of the encoder's {len(names)} names is in it, such as {names[0]}; "
            f"the file's begin with {next(iter(state))}"
        )
    return best_prefix, best


def _summary(names: Sequence[str], prefix: str) -> list[str]:
    """Shorten names to their beginnings, with the number of names behind each: `fc. (2)`, `module.encoder_k. (124)`."""
    lengths = [prefix.count(".") + 1 if name.startswith(prefix) else 2 for name in names]
    first = [".".join(name.split(".")[:length]) for name, length in zip(names, lengths, strict=True)]
    return [
        beginning if beginning in names else f"{beginning}. ({first.count(beginning)})"
        for beginning in dict.fromkeys(first)
    ]


def check_encoder(encoder: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse a state that is not exactly an encoder's; only BatchNorm's `num_batches_tracked` may be missing.

    Args:
        encoder: the network; it is not changed.
        state: tensors by name.

    Raises:
        ValueError: names are missing or unexpected, or tensors have another shape or are not finite; the message gives
            the number of faults and the first three.
    """
    expected = encoder.state_dict()
    faults = [f"missing {name}" for name in expected if name not in state and not name.endswith(_TRACKED)]
    faults += [f"unexpected {name}" for name in state if name not in expected]
    for name, tensor in expected.items():
        if name in state and state[name].shape != tensor.shape:
            faults.append(f"{name} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}")
    faults += [f"{name} is not finite" for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if faults:
        raise ValueError(f"encoder weights do not fit, {len(faults)} faults: {'; '.join(faults[:3])}")


def load_encoder(encoder: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load all weights of an encoder from a state dict with its names. Raises ValueError as check_encoder does."""
    check_encoder(encoder, state)
    tracked = {name: tensor for name, tensor in encoder.state_dict().items() if name.endswith(_TRACKED)}
    nn.Module.load_state_dict(encoder, tracked | dict(state))
