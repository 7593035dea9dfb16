"""Bring a file of encoder weights into the store, so that every worker reads the same bytes; and put weights of the store into a network.

INPUT   ImageNet weights from a file, from the caches of torchvision or smp, or, where that is asked for, from their hubs; or any file
OUTPUT  weights.safetensors: the encoder without a head; architecture and normalisation in its metadata
FAN-OUT one file, in the driver
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from chexseg_ray.artifacts import open_filesystem
from chexseg_ray.data.normalisation import STATISTICS
from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.pretraining.encoders import build_encoder, load_encoder, read_encoder
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.train import TrainingJob
from chexseg_ray.stages.training_state import to_safetensors

_INCEPTION = ("xception", "inceptionv4", "inceptionresnetv2")  # smp's weights of these have mean and deviation 0.5


def make(task: Task) -> Made:
    """Read, check that the weights fit, write."""
    config = task.step.config
    architecture = config["architecture"]
    if config["source"] == "file":
        name, data = _find(task.execution.encoder_files, config["sha256"])
    else:
        path = imagenet_file(architecture, task.execution.download)
        name, data = path.name, path.read_bytes()
    try:
        imagenet = config["source"] == "imagenet" or "trained_on" in config
        statistics = config.get("normalisation") or (imagenet_statistics(architecture) if imagenet else None)
        weights = read_encoder(data, build_encoder(architecture), architecture, config.get("pathologies", ()), statistics)
    except ValueError as error:
        raise InputError(f"{name}: {error}: name a file of {architecture} weights") from None
    facts = {"architecture": architecture, "normalisation": weights.normalisation, "trained_by": config["source"]}
    entry = task.attempt.write("weights.safetensors", to_safetensors(weights.state, {"model": json.dumps(facts)}))
    metrics = {"source": name, "sha256": hashlib.sha256(data).hexdigest(), **weights.provenance}
    return Made([entry], rows=len(weights.state), metrics=metrics)


def imagenet_statistics(architecture: str) -> str:
    """The name of the statistics that smp's or timm's ImageNet weights of an encoder were trained with.

    Raises:
        ValueError: they are none of data.normalisation.STATISTICS.
    """
    if architecture in _INCEPTION:
        return "inception"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mean, std = STATISTICS["imagenet"]
    if architecture.startswith("dpn"):
        mean, std = (124 / 255, 117 / 255, 104 / 255), (1 / (0.0167 * 255),) * 3
    if architecture.startswith("tu-"):
        from timm.models import get_pretrained_cfg

        timm = get_pretrained_cfg(architecture.removeprefix("tu-"), allow_unregistered=True)
        mean, std = (timm.mean, timm.std) if timm is not None else (mean, std)
    named = next((name for name, values in STATISTICS.items() if values == (tuple(mean), tuple(std))), None)
    if named is None:
        raise ValueError(f"its ImageNet weights were trained with mean {mean} and deviation {std}, which are none of {', '.join(STATISTICS)}")
    return named


def _find(paths: Sequence[str], sha256: str) -> tuple[str, bytes]:
    """The file of that content among the files that the config names: its path and its bytes."""
    for path in paths:
        filesystem, where = open_filesystem(path, "encoder")
        with filesystem.open_input_file(where) as stream:
            data: bytes = stream.read()
        if hashlib.sha256(data).hexdigest() == sha256:
            return path, data
    raise InputError(f"{', '.join(paths)}: a file of encoder weights was changed while the study ran: run again")


def imagenet_file(architecture: str, download: bool) -> Path:
    """The file of an encoder's ImageNet weights: torchvision's in torch.hub's folder, else smp's or timm's in Hugging Face's.

    Raises:
        InputError: it is not there, and may not be or cannot be downloaded; names the file and the places.
    """
    remedy = f"or set pretraining.imagenet_files={{{architecture}: FILE}}" + ("" if download else " or pretraining.download=true")
    found = _torchvision_file(architecture)
    if found is not None and found[1].is_file():
        return _verified(found[1])
    repository, revision = _hub_repository(architecture)
    if repository is None:
        raise InputError(f"imagenet: smp and timm publish no ImageNet weights of {architecture}: choose another init, {remedy}")
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, "model.safetensors", revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    url = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/model.safetensors"
    if not download:
        place = f"put {found[0]} there as {found[1]}" if found else f"put {url} into the cache {constants.HF_HUB_CACHE}"
        raise InputError(f"imagenet: no weights of {architecture} on this machine: {place}, {remedy}")
    try:
        return Path(hf_hub_download(repository, "model.safetensors", revision=revision))
    except (OSError, ValueError) as error:  # what huggingface_hub raises for a hub that cannot be reached, and for a file it lacks
        reason = " ".join(str(error).split())[:200]
        raise TransientError(f"imagenet: {url} cannot be fetched ({reason}): run again where it can be reached, {remedy}") from None


def _torchvision_file(architecture: str) -> tuple[str, Path] | None:
    """URL and place of torchvision's file; None when torchvision has no such network."""
    from torch.hub import get_dir
    from torchvision.models import get_model_weights, list_models

    if architecture not in list_models():
        return None
    url: str = get_model_weights(architecture)["IMAGENET1K_V1"].url
    return url, Path(get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def _verified(path: Path) -> Path:
    """The end of torchvision's file name is the beginning of the file's sha256."""
    digest, wanted = hashlib.sha256(path.read_bytes()).hexdigest(), path.stem.rsplit("-", 1)[1]
    if not digest.startswith(wanted):
        raise InputError(f"imagenet: {path}: its sha256 begins with {digest[:8]}, not {wanted}: fetch the file again")
    return path


def _hub_repository(architecture: str) -> tuple[str | None, str | None]:
    """Where smp or timm publish the weights: repository and revision."""
    if architecture.startswith("tu-"):
        from timm.models import get_pretrained_cfg

        timm = get_pretrained_cfg(architecture.removeprefix("tu-"), allow_unregistered=True)
        return (timm.hf_hub_id if timm is not None else None), None
    from segmentation_models_pytorch.encoders import encoders

    settings = encoders.get(architecture, {}).get("pretrained_settings", {}).get("imagenet") or {}
    return settings.get("repo_id"), settings.get("revision")


def initialise(encoder: nn.Module, job: TrainingJob, architecture: str, normalisation: str) -> tuple[str, dict[str, Any]]:
    """Put a job's `encoder` input, if it has one, into a network.

    Args:
        encoder: the network, with the names of the encoder of that architecture (a head may follow).
        job: its input may be the record of an encoder file, of a classifier or of MoCo.
        architecture: the encoder's name.
        normalisation: what a network that begins with random weights uses.

    Returns:
        The normalisation that goes with the weights (a long training from them may choose its own), and where they come from.
    """
    if "encoder" not in job.inputs:
        return normalisation, {"source": "random", "normalisation": normalisation}
    record = job.inputs["encoder"]
    data = job.attempt.store.read(record, "weights.safetensors")
    weights = read_encoder(data, build_encoder(architecture), architecture, job.config.get("pathologies", ()))
    own = encoder.state_dict()  # with a head, which keeps its own; or without the last stages, which some architectures do not use
    fitting = {name: tensor for name, tensor in weights.state.items() if name in own}
    load_encoder(encoder, dict(own) | fitting)
    facts = {"source": record.name, "record": record.address, "loaded": len(fitting), "normalisation": weights.normalisation}
    return weights.normalisation, facts | {k: record.metrics[k] for k in ("source", "sha256") if k in record.metrics}
