"""One update of every training on random pixels, at any size and on any device.

Not a script, and measures nothing: gpu.py times these updates, and fake_devices.py counts what they ask of a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from chexseg_ray.data.images import content_box
from chexseg_ray.engine.device_updates import device_updates
from chexseg_ray.engine.devices import to_device
from chexseg_ray.engine.replicas import Replica
from chexseg_ray.engine.shards import Batch, Sample
from chexseg_ray.pretraining.moco import MocoBatch, MocoSettings, build_moco, draw_batch, moco_update
from chexseg_ray.pseudo.classifier import IGNORED, build_classifier, classifier_update
from chexseg_ray.pseudo.irnet import IRNet, irnet_update
from chexseg_ray.pseudo.random_walk import WalkSettings
from chexseg_ray.segmentation.network import build_network
from chexseg_ray.segmentation.training import segmentation_update, unpacked
from chexseg_ray.stages.irnet import Sampling, training_sample
from chexseg_ray.updates.precision import placed
from chexseg_ray.updates.step import Pass

M = TypeVar("M", bound=nn.Module)
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
        precision: float32 | bf16.
        channels_last: whether weights have that memory format in float32 too.
        graph: whether an update is one CUDA graph.
    """

    size: int
    batch_size: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    radius: int = 10
    queue_size: int = 24576
    num_replicas: int = 1
    dropout: bool = True
    precision: str = "float32"
    channels_last: bool = False
    graph: bool = False

    def placed(self, model: M) -> M:
        """Move a network to the device, in train mode."""
        model = placed(model.to(self.dtype), self.device, self.precision).train()
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def updates(
        self, update: Callable[..., torch.Tensor], optimiser: torch.optim.Optimizer, model: nn.Module
    ) -> Callable[..., torch.Tensor]:
        """Make the function that does an update, as the trainings make it."""
        return device_updates(
            update,
            optimiser,
            [model],
            device=self.device,
            replica=ALONE,
            num_replicas=self.num_replicas,
            precision=self.precision,
            seed=0,
            graph=self.graph,
        )


Update = Callable[[int], torch.Tensor]  # takes the number of the update, returns its loss or losses


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
    model = setup.placed(build_classifier(architecture, PATHOLOGIES, "ignore"))
    optimiser = _adam(model.parameters())
    batch = random_batch(np.random.default_rng(3), setup.batch_size, setup.size)
    pixels, targets = torch.tensor(batch.pixels), torch.tensor(batch.targets)

    def on_device(pass_: Pass, pixels: torch.Tensor, targets: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        return classifier_update(model, optimiser, pixels, targets, count, "imagenet", partial(pass_, model))

    do = setup.updates(on_device, optimiser, model)
    return model, lambda number: do(number, pixels, targets, (targets != IGNORED).sum())


def _segmentation(setup: Setup) -> tuple[nn.Module, Update]:
    """Make the segmentation network's training, on masks of which a fifth is positive."""
    model = setup.placed(segmentation_network())
    if not setup.dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    optimiser = _adam(model.parameters())
    rng = np.random.default_rng(5)
    pixels = torch.from_numpy(random_pixels(rng, setup.batch_size, setup.size))
    masks = rng.random((setup.batch_size, PATHOLOGIES, setup.size * setup.size)) > 0.8
    packed = torch.from_numpy(np.packbits(masks, axis=-1))

    def on_device(pass_: Pass, pixels: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        masks = unpacked(packed, setup.size)
        return segmentation_update(model, optimiser, pixels, masks, "chexpert", 1.0, partial(pass_, model))

    do = setup.updates(on_device, optimiser, model)
    return model, lambda number: do(number, pixels, packed)


def _irnet(displacement: bool, setup: Setup) -> tuple[nn.Module, Update]:
    """Make IRNet's training, with or without the displacement branch."""
    model = setup.placed(IRNet(displacement))
    optimiser = torch.optim.SGD(model.parameter_groups(0.01), lr=0.01, weight_decay=1e-4)
    batch = random_batch(np.random.default_rng(3), setup.batch_size, setup.size)
    sample = training_sample(batch, irnet_sampling(setup.size), 0, ALONE)

    def update(number: int) -> torch.Tensor:
        pixels, labels = (to_device(tensor, setup.device) for tensor in sample)
        return irnet_update(model, optimiser, pixels, labels, setup.radius, "sum", "imagenet")

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
    model = setup.placed(build_moco(settings))
    optimiser = _adam(model.query.parameters(), weight_decay=1e-4)
    pixels = torch.from_numpy(random_batch(np.random.default_rng(3), setup.batch_size, setup.size).pixels)
    boxes = [content_box(*ORIGINAL, setup.size)] * setup.batch_size

    def on_device(pass_: Pass, *batch: torch.Tensor) -> torch.Tensor:
        return moco_update(model, optimiser, MocoBatch(*batch), settings, pass_, ALONE)

    do = setup.updates(on_device, optimiser, model)
    return model.query, lambda number: do(number, *draw_batch(pixels, boxes, settings, number, ALONE))
