"""Encoders of smp, and one reader for every file that holds weights for them.

The reader takes state dicts of torchvision, timm and smp, CheXpert's Lightning checkpoints (`model.model.`), those of
MoCo-CXR (`module.encoder_q.`), whole segmentation networks (`encoder.`), and this project's records. Nothing in a file
is executed, and nothing is downloaded here.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from chexseg_ray.data.encoder_names import check_encoder_name
from chexseg_ray.data.normalisation import STATISTICS
from chexseg_ray.errors import quoted, shortened
from chexseg_ray.pretraining.checkpoints import has_number_type, read_facts, read_state

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

    check_encoder_name(architecture)
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
        raise ValueError(f"it is a {shortened(recorded)}'s, not a {architecture}'s")
    order = facts.get("pathologies", [])
    if list(pathologies) != order and sorted(pathologies) == sorted(order) and order:
        raise ValueError(
            f"it was trained on the pathologies in another order ({shortened(order[0])} first), "
            "so its channels are not this study's"
        )
    renamed = {_OLD_DENSENET.sub(r"\1\2.", name): tensor for name, tensor in state.items()}
    if len(renamed) < len(state):
        raise ValueError("it names a layer in the old and in the new spelling")
    state = renamed
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
        raise ValueError(
            f"it was trained on images normalised as {quoted(chosen)}, which is none of {', '.join(STATISTICS)}"
        )
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
            f"the file's begin with {shortened(next(iter(state)))}"
        )
    return best_prefix, best


def _summary(names: Sequence[str], prefix: str) -> list[str]:
    """Shorten names to their beginnings, with the number of names behind each: `fc. (2)`, `module.encoder_k. (124)`."""
    lengths = [prefix.count(".") + 1 if name.startswith(prefix) else 2 for name in names]
    first = [".".join(name.split(".")[:length]) for name, length in zip(names, lengths, strict=True)]
    whole = set(names)
    return [
        beginning if beginning in whole else f"{beginning}. ({count})" for beginning, count in Counter(first).items()
    ]


def check_encoder(encoder: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse a state that is not exactly an encoder's; only BatchNorm's `num_batches_tracked` may be missing.

    Args:
        encoder: the network; it is not changed.
        state: tensors by name.

    Raises:
        ValueError: names are missing or unexpected, or tensors have another shape, no floating-point numbers (or the
            type of the encoder's own entry), or numbers that are not finite in the encoder; the message gives the
            number of faults and the first three.
    """
    expected = encoder.state_dict()
    faults = [f"missing {name}" for name in expected if name not in state and not name.endswith(_TRACKED)]
    faults += [f"unexpected {shortened(name)}" for name in state if name not in expected]
    for name, own in expected.items():
        if name not in state:
            continue
        tensor = state[name]
        if tensor.shape != own.shape:
            faults.append(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(own.shape)}")
        elif not has_number_type(tensor, own.dtype):
            faults.append(f"{name} is of {tensor.dtype}, expected {own.dtype}")
        elif not torch.isfinite(tensor.to(own.dtype)).all():
            faults.append(f"{name} is not finite")
    if faults:
        raise ValueError(f"encoder weights do not fit, {len(faults)} faults: {'; '.join(faults[:3])}")


def load_encoder(encoder: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load all weights of an encoder from a state dict with its names. Raises ValueError as check_encoder does."""
    check_encoder(encoder, state)
    tracked = {name: tensor for name, tensor in encoder.state_dict().items() if name.endswith(_TRACKED)}
    nn.Module.load_state_dict(encoder, tracked | dict(state))
