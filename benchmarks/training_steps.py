"""One update of every training on random pixels, at any size and on any device.

Not a script, and measures nothing: gpu.py times these updates, and fake_devices.py counts what they ask of a GPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from chexseg_ray.data.images import content_box
from chexseg_ray.engine.replicas import Replica
from chexseg_ray.engine.shards import Batch, Sample
from chexseg_ray.pretraining.moco import MocoSettings, build_moco, moco_update
from chexseg_ray.pseudo.classifier import IGNORED, build_classifier, classifier_update
from chexseg_ray.pseudo.irnet import IRNet, irnet_update
from chexseg_ray.pseudo.random_walk import WalkSettings
from chexseg_ray.segmentation.network import build_network
from chexseg_ray.segmentation.training import segmentation_update
from chexseg_ray.stages.irnet import Sampling, training_sample

PATHOLOGIES = 10
ORIGINAL = (2320, 2828)  # height and width of a CheXpert X-ray, in pixels
ALONE = Replica(0, 1)
WALKS = {"chexseg": WalkSettings(3, 5.0, 8), "irn": WalkSettings(5, 10.0, 256)}
# The paper's
BATCH_SIZES = {
    "segmentation": 8,
    "classifier densenet121": 16,
    "classifier resnet18": 16,
    "irnet": 16,
    "irnet displacement": 16,
    "moco": 16,
}


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
        num_replicas: number of parts in which BatchNorm sees a batch (segmentation, classifier and MoCo).
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


def random_pixels(rng: np.random.Generator, count: int, size: int) -> npt.NDArray[np.uint8]:
    """Draw images, uint8 [count, size, size]."""
    return rng.integers(0, 256, (count, size, size)).astype(np.uint8)


def random_batch(rng: np.random.Generator, count: int, size: int) -> Batch:
    """Draw a batch of images, targets of 0 and 1, and CAMs float16 [10, S / 32, S / 32].

    Args:
        rng: source of all random numbers.
        count: number of images.
        size: S, pixels of a side.
    """
    grid = size // 32
    samples = []
    for i, pixels in enumerate(random_pixels(rng, count, size)):
        target = rng.integers(0, 2, PATHOLOGIES).astype(np.int8)
        cams = rng.random((PATHOLOGIES, grid, grid)).astype(np.float16)
        samples.append(Sample(f"i{i}", pixels, target, ORIGINAL, cams))
    return Batch(samples)


def segmentation_network() -> nn.Module:
    """Make the paper's DeepLabv3+ on ResNet18, for ten pathologies."""
    return build_network("deeplabv3plus", "resnet18", PATHOLOGIES)


def make_step(name: str, setup: Setup) -> tuple[nn.Module, Update]:
    """Make one of the trainings.

    Weights are drawn in float32 whatever `setup.dtype` is, so that steps on several devices begin alike.

    Args:
        name: one of BATCH_SIZES.
        setup: sizes and device.

    Returns:
        The module whose weights the training changes, and its update.
    """
    torch.manual_seed(0)
    if name.startswith("classifier"):
        return _classifier(name.split()[1], setup)
    if name == "segmentation":
        return _segmentation(setup)
    if name.startswith("irnet"):
        return _irnet("displacement" in name, setup)
    return _moco(setup)


def _adam(parameters: Any, **options: Any) -> torch.optim.Adam:
    """Make the optimiser as the trainings do."""
    return torch.optim.Adam(parameters, lr=1e-4, fused=True, **options)


def _classifier(architecture: str, setup: Setup) -> tuple[nn.Module, Update]:
    """Make the classifier's training."""
    model = build_classifier(architecture, PATHOLOGIES, "ignore").to(setup.device, setup.dtype).train()
    optimiser = _adam(model.parameters())
    batch = random_batch(np.random.default_rng(3), setup.batch_size, setup.size)

    def update(number: int) -> float:
        pixels, targets = torch.tensor(batch.pixels).to(setup.device), torch.tensor(batch.targets)
        count = int((targets != IGNORED).sum())
        forward = partial(ALONE.forward, model, num_replicas=setup.num_replicas, seed=(0, number))
        return classifier_update(model, optimiser, pixels, targets.to(setup.device), count, "imagenet", forward)

    return model, update


def _segmentation(setup: Setup) -> tuple[nn.Module, Update]:
    """Make the segmentation network's training, on masks of which a fifth is positive."""
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
    """Make IRNet's training, with or without the displacement branch."""
    model = IRNet(displacement).to(setup.device, setup.dtype).train()
    optimiser = torch.optim.SGD(model.parameter_groups(0.01), lr=0.01, weight_decay=1e-4)
    batch = random_batch(np.random.default_rng(3), setup.batch_size, setup.size)
    pixels, labels = training_sample(batch, irnet_sampling(setup.size), 0, ALONE)

    def update(number: int) -> Sequence[float]:
        return irnet_update(
            model, optimiser, pixels.to(setup.device), labels.to(setup.device), setup.radius, "sum", "imagenet"
        )

    return model.branches, update


def irnet_sampling(size: int) -> Sampling:
    """Return the paper's values, with images rescaled as the irn code does."""
    return Sampling(size=size, foreground=0.3, background=0.05, rescale=(0.5, 1.5), flip=False, seed=0)


def _moco(setup: Setup) -> tuple[nn.Module, Update]:
    """Make MoCo's training."""
    settings = MocoSettings(
        architecture="resnet18",
        normalisation="chexpert",
        queue_size=setup.queue_size,
        momentum=0.999,
        temperature=0.2,
        dimensions=128,
        rotation_degrees=10.0,
        min_crop=1.0,
        num_replicas=setup.num_replicas,
        seed=0,
        size=setup.size,
    )
    model = build_moco(settings).to(setup.device, setup.dtype).train()
    optimiser = _adam(model.query.parameters(), weight_decay=1e-4)
    batch = random_batch(np.random.default_rng(3), setup.batch_size, setup.size)
    pixels = torch.from_numpy(batch.pixels)
    boxes = [content_box(*ORIGINAL, setup.size)] * setup.batch_size
    return model.query, lambda update: moco_update(model, optimiser, pixels, boxes, settings, update, ALONE)
