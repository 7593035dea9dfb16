"""Bring a file of encoder weights into the store, so that every worker reads the same bytes.

The step takes a file that the user names, or finds the ImageNet weights of an encoder: in the caches of torchvision and
Hugging Face, or, if the config allows downloads, on their hubs. It checks that the weights fit the encoder, and writes
them with the encoder's names. `initialise` puts such weights, or those of a classifier or of MoCo, into a network.

INPUT   one file of weights, in any format that pretraining.encoders.read_encoder reads
OUTPUT  weights.safetensors: the encoder without a head, with {architecture, normalisation, trained_by} as JSON under
        `model` in its metadata. No table; the file's name, its sha256 and what was found in it are in the record's
        metrics.
FAN-OUT one file, in the driver
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from chexseg_ray.data.encoder_names import check_encoder_name
from chexseg_ray.data.normalisation import STATISTICS
from chexseg_ray.engine.execution import Made, Task
from chexseg_ray.engine.train import WEIGHTS, TrainingJob
from chexseg_ray.engine.training_state import to_safetensors
from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.pretraining.encoders import build_encoder, load_encoder, read_encoder
from chexseg_ray.store.filesystem import ABSENT, open_filesystem, storage

# smp's ImageNet weights of these encoders were trained with mean and deviation 0.5
_INCEPTION = ("xception", "inceptionv4", "inceptionresnetv2")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What identifies a file of encoder weights: the step's hashed config.

    Args:
        architecture: the encoder's name, one of smp, or of timm as `tu-...`.
        source: `file`, or `imagenet` for weights that are looked for in caches and hubs.
        sha256: the file's hash; empty for `imagenet`.
        pathologies: the study's K names; a file of this project must not have them in another order.
        normalisation: the file's input statistics, where the config names them; None where it does not.
        trained_on: `imagenet` where the config names the file as ImageNet weights; empty elsewhere.
    """

    architecture: str
    source: str
    sha256: str = ""
    pathologies: Sequence[str] = ()
    normalisation: str | None = None
    trained_on: str = ""


def make(task: Task) -> Made:
    """Read the file, check that its weights fit, and write them.

    Args:
        task: the step to make; its execution has the files of weights, and whether a download is allowed.

    Returns:
        The weights; `rows` counts their tensors. The metrics are the file's name (`source`) and `sha256`, and what was
        found in it, as EncoderWeights.provenance has it.

    Raises:
        InputError: there is no such file, it cannot be read, or its weights do not fit the encoder.
        TransientError: a download failed.
    """
    settings = Settings(**task.step.config)
    if settings.source == "file":
        name, data = _read_by_hash(task.execution.encoder_files, settings.sha256)
    else:
        path = imagenet_file(settings.architecture, task.execution.download)
        with storage("read", str(path)):
            name, data = path.name, path.read_bytes()
    try:
        statistics = settings.normalisation
        if statistics is None and "imagenet" in (settings.source, settings.trained_on):
            statistics = imagenet_statistics(settings.architecture)
        weights = read_encoder(
            data, build_encoder(settings.architecture), settings.architecture, settings.pathologies, statistics
        )
    except ValueError as error:
        raise InputError(f"{name}: {error}: name a file of {settings.architecture} weights") from None
    facts = {
        "architecture": settings.architecture,
        "normalisation": weights.normalisation,
        "trained_by": settings.source,
    }
    entry = task.attempt.write(WEIGHTS, to_safetensors(weights.state, {"model": json.dumps(facts)}))
    metrics = {"source": name, "sha256": hashlib.sha256(data).hexdigest(), **weights.provenance}
    return Made([entry], rows=len(weights.state), metrics=metrics)


def imagenet_statistics(architecture: str) -> str:
    """Find the input statistics that smp's or timm's ImageNet weights of an encoder were trained with.

    Args:
        architecture: the encoder's name.

    Returns:
        A name of data.normalisation.STATISTICS.

    Raises:
        ValueError: the statistics are none of these.
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

        pretrained = get_pretrained_cfg(architecture.removeprefix("tu-"), allow_unregistered=True)
        if pretrained is not None:
            mean, std = pretrained.mean, pretrained.std
    for name, statistics in STATISTICS.items():
        if statistics == (tuple(mean), tuple(std)):
            return name
    trained = f"its ImageNet weights were trained with mean {mean} and deviation {std}"
    raise ValueError(f"{trained}, which are none of {', '.join(STATISTICS)}")


def _read_by_hash(paths: Sequence[str], sha256: str) -> tuple[str, bytes]:
    """Read the file whose content has a hash.

    Args:
        paths: the files of encoder weights that the config names; paths or URIs.
        sha256: the hash, which one of them had when the study began.

    Returns:
        The file's path and its bytes.

    Raises:
        InputError: no file has that hash any more.
        TransientError: the storage refuses or does not answer.
    """
    for path in paths:
        filesystem, where = open_filesystem(path, "encoder")
        try:
            with storage("read", path), filesystem.open_input_file(where) as stream:
                data: bytes = stream.read()
        except ABSENT:
            continue  # it was there when the study began
        if hashlib.sha256(data).hexdigest() == sha256:
            return path, data
    raise InputError(
        f"{', '.join(paths)}: a file of encoder weights was changed or removed while the study ran: run again"
    )


def imagenet_file(architecture: str, download: bool) -> Path:
    """Find the file of an encoder's ImageNet weights.

    It is torchvision's file in the folder of torch.hub, otherwise smp's or timm's file in the cache of Hugging Face.

    Args:
        architecture: the encoder's name.
        download: whether smp's or timm's file may be fetched from Hugging Face if this machine has neither.

    Returns:
        The file's path.

    Raises:
        InputError: there is no such encoder, nobody publishes such weights, they are not on this machine and must not
            be fetched, or torchvision's file is damaged; the message names the file and its place.
        TransientError: the file cannot be fetched.
    """
    try:
        check_encoder_name(architecture)
    except ValueError as error:
        raise InputError(f"imagenet: {error}: name another encoder") from None
    remedy = f"or set pretraining.imagenet_files={{{architecture}: FILE}}"
    if not download:
        remedy += " or pretraining.download=true"
    published = _torchvision_file(architecture)
    if published is not None and published[1].is_file():
        return _verified(published[1])
    repository, revision = _hub_repository(architecture)
    if repository is None:
        raise InputError(
            f"imagenet: smp and timm publish no ImageNet weights of {architecture}: choose another init, {remedy}"
        )
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, "model.safetensors", revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    url = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/model.safetensors"
    if not download:
        if published is not None:
            where = f"put {published[0]} there as {published[1]}"
        else:
            where = f"put {url} into the cache {constants.HF_HUB_CACHE}"
        raise InputError(f"imagenet: no weights of {architecture} on this machine: {where}, {remedy}")
    try:
        return Path(hf_hub_download(repository, "model.safetensors", revision=revision))
    except (OSError, ValueError) as error:  # huggingface_hub: the hub cannot be reached, or has no such file
        reason = " ".join(str(error).split())[:200]
        raise TransientError(
            f"imagenet: {url} cannot be fetched ({reason}): run again where it can be reached, {remedy}"
        ) from None


def _torchvision_file(architecture: str) -> tuple[str, Path] | None:
    """The URL of torchvision's file, and its path in torch.hub's folder; None when torchvision has no such network."""
    from torch.hub import get_dir
    from torchvision.models import get_model_weights, list_models

    if architecture not in list_models():
        return None
    url: str = get_model_weights(architecture)["IMAGENET1K_V1"].url
    return url, Path(get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def _verified(path: Path) -> Path:
    """Return torchvision's file if it is whole: its name ends with the first digits of its sha256.

    Raises:
        InputError: its sha256 begins with other digits.
    """
    digest, wanted = hashlib.sha256(path.read_bytes()).hexdigest(), path.stem.rsplit("-", 1)[1]
    if not digest.startswith(wanted):
        raise InputError(f"imagenet: {path}: its sha256 begins with {digest[:8]}, not {wanted}: fetch the file again")
    return path


def _hub_repository(architecture: str) -> tuple[str | None, str | None]:
    """The repository and revision on Hugging Face of smp's or timm's weights; None where there is none."""
    if architecture.startswith("tu-"):
        from timm.models import get_pretrained_cfg

        pretrained = get_pretrained_cfg(architecture.removeprefix("tu-"), allow_unregistered=True)
        return (pretrained.hf_hub_id if pretrained is not None else None), None
    from segmentation_models_pytorch.encoders import encoders

    settings = encoders.get(architecture, {}).get("pretrained_settings", {}).get("imagenet") or {}
    return settings.get("repo_id"), settings.get("revision")


def initialise(
    encoder: nn.Module, job: TrainingJob[Any], architecture: str, normalisation: str, pathologies: Sequence[str] = ()
) -> tuple[str, dict[str, Any]]:
    """Put the weights of a job's input `encoder`, if it has one, into a network.

    Args:
        encoder: the network, whose weights have the names of the architecture's encoder. It may have a head, which
            keeps its weights, and the last stages may be missing, as some architectures do not use them.
        job: its input `encoder` is the record of an encoder file, of a classifier or of MoCo.
        architecture: the encoder's name.
        normalisation: the input statistics of a network that begins with random weights.
        pathologies: the study's K names; a classifier must not have been trained on them in another order.

    Returns:
        The normalisation that goes with the weights, a name of data.normalisation.STATISTICS (the caller may use
        another one), and facts for the record about where the weights come from.

    Raises:
        ValueError: the weights are not those of such an encoder, as in pretraining.encoders.read_encoder.
    """
    if "encoder" not in job.inputs:
        return normalisation, {"source": "random", "normalisation": normalisation}
    record = job.inputs["encoder"]
    data = job.attempt.store.read(record, WEIGHTS)
    weights = read_encoder(data, build_encoder(architecture), architecture, pathologies)
    present = encoder.state_dict()
    fitting = {name: tensor for name, tensor in weights.state.items() if name in present}
    load_encoder(encoder, dict(present) | fitting)
    facts = {
        "source": record.name,
        "record": record.address,
        "loaded": len(fitting),
        "normalisation": weights.normalisation,
    }
    for name in ("source", "sha256"):  # the file's name and hash, where the weights come from a file
        if name in record.metrics:
            facts[name] = record.metrics[name]
    return weights.normalisation, facts
