"""One update of every training on random pixels, at any size and on any device: what gpu.py times and fake_devices.py counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from chexseg_ray.pseudo.classifier import build_classifier
from chexseg_ray.pseudo.irnet import IRNet
from chexseg_ray.pseudo.random_walk import WalkSettings
from chexseg_ray.segmentation.network import build_network
from chexseg_ray.segmentation.training import segmentation_update
from chexseg_ray.stages.classifier import classifier_update
from chexseg_ray.stages.irnet import irnet_update, training_sample
from chexseg_ray.stages.moco import build_moco, moco_update
from chexseg_ray.stages.replicas import Replica
from chexseg_ray.stages.shards import Batch, Sample

PATHOLOGIES = 10
ORIGINAL = (2320, 2828)  # height and width of a CheXpert X-ray, in pixels
ALONE = Replica(0, 1)
WALKS = {"chexseg": WalkSettings(3, 5.0, 8), "irn": WalkSettings(5, 10.0, 256)}
DEEPLAB = {"output_stride": 16, "atrous_rates": (12, 24, 36)}
BATCH_SIZES = {
    "segmentation": 8,
    "classifier densenet121": 16,
    "classifier resnet18": 16,
    "irnet": 16,
    "irnet displacement": 16,
    "moco": 16,
}  # the paper's


@dataclass(frozen=True)
class Setup:
    """How large a step is and where it runs.

    Args:
        size: S, pixels of a side.
        batch_size: images of one update.
        device: of weights and inputs.
        dtype: of the weights; inputs have torch's default type.
        radius: of IRNet's pairs, in cells.
        queue_size: of MoCo, a multiple of batch_size.
        num_replicas: parts that BatchNorm sees a batch in (segmentation, classifier and MoCo).
        dropout: False sets every dropout to 0, as CPU and GPU draw different masks from one seed.
    """

    size: int
    batch_size: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    radius: int = 10
    queue_size: int = 24576
    num_replicas: int = 1
    dropout: bool = True


Update = Callable[[int], Any]  # takes the number of the update, returns its loss or losses


def random_pixels(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """uint8 [count, size, size]."""
    return rng.integers(0, 256, (count, size, size)).astype(np.uint8)


def random_batch(rng: np.random.Generator, count: int, size: int) -> Batch:
    """Images with random pixels, targets of 0 and 1, and CAMs float16 [10, S / 32, S / 32]."""
    grid = size // 32
    samples = []
    for i, pixels in enumerate(random_pixels(rng, count, size)):
        target = rng.integers(0, 2, PATHOLOGIES).astype(np.int8)
        cams = rng.random((PATHOLOGIES, grid, grid)).astype(np.float16)
        samples.append(Sample(f"i{i}", pixels, target, ORIGINAL, cams))
    return Batch(samples)


def segmentation_network() -> nn.Module:
    """The paper's DeepLabv3+ on ResNet18, for ten pathologies."""
    return build_network("deeplabv3plus", "resnet18", PATHOLOGIES, DEEPLAB)


def make_step(name: str, setup: Setup) -> tuple[nn.Module, Update]:
    """The weights that a training changes, and its update.

    Weights are drawn in float32 whatever `setup.dtype`, so that steps on several devices begin alike.

    Args:
        name: one of BATCH_SIZES.
        setup: sizes and device.
    """
    torch.manual_seed(0)
    if name.startswith("classifier"):
        return _classifier(name.split()[1], setup)
    if name == "segmentation":
        return _segmentation(setup)
    if name.startswith("irnet"):
        return _irnet("displacement" in name, setup)
    return _moco(setup)


def _adam(parameters: Any, **more: Any) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=1e-4, fused=True, **more)


def _classifier(architecture: str, setup: Setup) -> tuple[nn.Module, Update]:
    model = build_classifier(architecture, PATHOLOGIES, "ignore").to(setup.device, setup.dtype).train()
    optimiser = _adam(model.parameters())
    batch = random_batch(np.random.default_rng(3), setup.batch_size, setup.size)
    config = {"normalisation": "imagenet", "num_replicas": setup.num_replicas, "seed": 0}
    return model, lambda update: classifier_update(model, optimiser, batch, config, update, ALONE, setup.device)


def _segmentation(setup: Setup) -> tuple[nn.Module, Update]:
    model = segmentation_network().to(setup.device, setup.dtype).train()
    if not setup.dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    optimiser = _adam(model.parameters())
    rng = np.random.default_rng(5)
    pixels = random_pixels(rng, setup.batch_size, setup.size)
    masks = rng.random((setup.batch_size, PATHOLOGIES, setup.size, setup.size)) > 0.8

    def update(number: int) -> float:
        inputs = torch.from_numpy(pixels).to(setup.device), torch.from_numpy(masks).to(setup.device)
        forward = partial(ALONE.forward, model, num_replicas=setup.num_replicas, seed=(0, number))
        return segmentation_update(model, optimiser, *inputs, "chexpert", 1.0, forward)

    return model, update


def _irnet(displacement: bool, setup: Setup) -> tuple[nn.Module, Update]:
    model = IRNet(displacement).to(setup.device, setup.dtype).train()
    optimiser = torch.optim.SGD(model.parameter_groups(0.01), lr=0.01, weight_decay=1e-4)
    config = {"normalisation": "imagenet", "radius": setup.radius, "loss_weights": "sum", **irnet_sampling(setup.size)}
    batch = random_batch(np.random.default_rng(3), setup.batch_size, setup.size)
    pixels, labels = training_sample(batch, config, 0, ALONE)

    def update(number: int) -> Sequence[float]:
        return irnet_update(model, optimiser, pixels.to(setup.device), labels.to(setup.device), config, ALONE)

    return model.branches, update


def irnet_sampling(size: int) -> dict[str, Any]:
    """What IRNet's training_sample reads of a config: the paper's values, images rescaled as irn does."""
    return {"seed": 0, "size": size, "rescale": [0.5, 1.5], "flip": False, "foreground": 0.3, "background": 0.05}


def _moco(setup: Setup) -> tuple[nn.Module, Update]:
    config = {
        "architecture": "resnet18",
        "dimensions": 128,
        "queue_size": setup.queue_size,
        "seed": 0,
        "normalisation": "chexpert",
        "num_replicas": setup.num_replicas,
        "rotation_degrees": 10.0,
        "min_crop": 1.0,
        "size": setup.size,
        "momentum": 0.999,
        "temperature": 0.2,
    }
    model = build_moco(config).to(setup.device, setup.dtype).train()
    optimiser = _adam(model.query.parameters(), weight_decay=1e-4)
    batch = random_batch(np.random.default_rng(3), setup.batch_size, setup.size)
    return model.query, lambda update: moco_update(model, optimiser, batch, config, update, ALONE, setup.device)
