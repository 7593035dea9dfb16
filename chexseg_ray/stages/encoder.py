"""Bring a file of encoder weights into the store, so that every worker reads the same bytes.

INPUT   torchvision's ImageNet weights from torch.hub's folder, or the file that irnet.encoder names; nothing is downloaded
OUTPUT  weights.safetensors: the network's weights without its head
FAN-OUT one file, in the driver
"""

import hashlib
from pathlib import Path

from chexseg_ray.artifacts import open_filesystem
from chexseg_ray.errors import InputError
from chexseg_ray.pretraining.encoders import encoder_state, load_encoder, read_state
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.training_state import to_safetensors


def make(task: Task) -> Made:
    """Read, check that the weights fit, write."""
    from chexseg_ray.pseudo.irnet import Trunk

    config = task.step.config
    name, data = _imagenet() if config["source"] == "imagenet" else _named(task.execution.encoder_file, config["sha256"])
    try:
        state = encoder_state(read_state(data))
        load_encoder(Trunk().layers, state)
    except ValueError as error:
        raise InputError(f"irnet.encoder: {name}: {error}: name a file of ResNet50 weights with torchvision's names") from None
    entry = task.attempt.write("weights.safetensors", to_safetensors(state))
    return Made([entry], rows=len(state), metrics={"source": name, "sha256": hashlib.sha256(data).hexdigest(), "loaded": len(state)})


def _named(path: str | None, sha256: str) -> tuple[str, bytes]:
    assert path is not None
    filesystem, where = open_filesystem(path, "irnet.encoder")
    with filesystem.open_input_file(where) as stream:
        data: bytes = stream.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"irnet.encoder: {path}: was changed while the study ran: run again")
    return path, data


def imagenet_file() -> Path:
    """Where torchvision keeps its ResNet50 weights; the end of the name is the beginning of the file's sha256.

    Raises:
        InputError: the file is not there; names it.
    """
    from torch.hub import get_dir
    from torchvision.models import ResNet50_Weights

    url: str = ResNet50_Weights.IMAGENET1K_V1.url
    path = Path(get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        raise InputError(f"irnet.encoder=imagenet: {path} is not there: put {url} there, or set irnet.encoder to a file or to random")
    return path


def _imagenet() -> tuple[str, bytes]:
    path = imagenet_file()
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    wanted = path.stem.rsplit("-", 1)[1]
    if not digest.startswith(wanted):
        raise InputError(f"irnet.encoder=imagenet: {path}: its sha256 begins with {digest[:8]}, not {wanted}: fetch the file again")
    return path.name, data
