"""MoCo v2 (Chen et al. 2020) on X-rays, as MoCo-CXR trains it (Sowrirajan et al. 2021).

Every image has two views. A query encoder is trained to tell the key of its image's other view from the keys of earlier
images in a queue; the key encoder follows it as a moving average. Views are flips, rotations by up to 10 degrees and a
random crop; brightness and colour do not change.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from chexseg_ray.data import streams
from chexseg_ray.data.images import ContentBox
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.pretraining.encoders import build_encoder, encoder_channels


@dataclass(frozen=True, kw_only=True)
class MocoSettings:
    """The settings that determine an update of MoCo.

    Args:
        architecture: smp's name of both encoders.
        normalisation: a name of data.normalisation.STATISTICS.
        queue_size: Q, the number of keys that a query is compared with; a multiple of the batch's size.
        momentum: how much of the key encoder stays at each update, in [0, 1).
        temperature: divides the cosine similarities.
        dimensions: D, the length of queries and keys.
        rotation_degrees: the largest angle that a view is turned by.
        min_crop: the smallest side of a view's square, in units of the content's shorter side.
        num_replicas: the number of parts of a batch; BatchNorm takes its statistics of one part.
        seed: the seed of weights, queue and views.
        size: S, pixels of a side.
    """

    architecture: str
    normalisation: str
    queue_size: int
    momentum: float
    temperature: float
    dimensions: int
    rotation_degrees: float
    min_crop: float
    num_replicas: int
    seed: int
    size: int


class Sharing(Protocol):
    """How the processes that train one network share a batch."""

    def share(self, size: int) -> slice:
        """Return the rows of a batch of `size` images that this process takes."""

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each of `tensors` by its sum over the processes; all processes pass equal shapes."""

    def forward(self, model: nn.Module, inputs: torch.Tensor, num_replicas: int, seed: Sequence[int]) -> torch.Tensor:
        """Return a training network's output for this process's rows.

        Args:
            model: the network, in train mode.
            inputs: its inputs for these rows, float [b, ...].
            num_replicas: the number of parts of the batch; BatchNorm takes its statistics of one part.
            seed: the numbers of which dropout is a function.
        """


@dataclass(frozen=True)
class Views:
    """How one view of each of B images is cut.

    Args:
        mirrored: bool [B].
        angle: float64 [B], degrees clockwise.
        side: float64 [B], the side of the square window, in units of the content's shorter side.
        place: float64 [B, 2] in [0, 1], where the window lies in the room that it has, down and across.
    """

    mirrored: npt.NDArray[np.bool_]
    angle: npt.NDArray[np.float64]
    side: npt.NDArray[np.float64]
    place: npt.NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator, count: int, degrees: float, min_crop: float) -> "Views":
        """Draw views uniformly.

        Args:
            rng: the generator of all draws.
            count: B.
            degrees: the largest angle.
            min_crop: the smallest side; 1 is MoCo-CXR's crop, as large as the shorter side.
        """
        mirrored = rng.random(count) < 0.5
        angle = rng.uniform(-degrees, degrees, count)
        side = rng.uniform(min_crop, 1.0, count)
        place = rng.uniform(0.0, 1.0, (count, 2))
        return cls(mirrored, angle, side, place)

    def of(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> "Views":
        """Return the views of the images in the given `rows`, in this order."""
        return Views(self.mirrored[rows], self.angle[rows], self.side[rows], self.place[rows])

    def matrices(self, boxes: Sequence[ContentBox], size: int) -> npt.NDArray[np.float64]:
        """The affine maps from a view's coordinates to the letterboxed image's, both in [-1, 1] as in affine_grid.

        The content is mirrored, turned about its centre (black comes in at its corners), then cut.

        Args:
            boxes: where the content of each image lies, in pixels.
            size: S, pixels of a side of the letterboxed image.

        Returns:
            float64 [B, 2, 3].
        """
        out = np.empty((len(boxes), 2, 3))
        for i, box in enumerate(boxes):
            side = min(box.height, box.width) * self.side[i]
            down, across = (np.array([box.height, box.width]) - side) * (self.place[i] - 0.5)
            cosine, sine = np.cos(np.deg2rad(self.angle[i])), np.sin(np.deg2rad(self.angle[i]))
            turn = np.array([[cosine, sine], [-sine, cosine]])
            if self.mirrored[i]:
                turn[0] *= -1
            centre = np.array([box.left + box.width / 2, box.top + box.height / 2])
            out[i, :, :2] = turn * side / size
            out[i, :, 2] = 2 * (turn @ np.array([across, down]) + centre) / size - 1
        return out


def build_moco(settings: MocoSettings) -> "MoCo":
    """Build both encoders with random weights, drawn from torch's global generator, and a queue from settings.seed.

    Args:
        settings: architecture, dimensions, queue_size and seed are read.

    Raises:
        ValueError: smp knows no such encoder.
    """
    channels = encoder_channels(settings.architecture)
    query, key = (Projector(build_encoder(settings.architecture), channels, settings.dimensions) for _ in range(2))
    return MoCo(query, key, settings.queue_size, torch.Generator().manual_seed(settings.seed))


def view_inputs(pixels: torch.Tensor, matrices: npt.NDArray[np.float64], normalisation: str) -> torch.Tensor:
    """Cut one view of each image, bilinearly, as a network's input.

    Args:
        pixels: uint8 [B, S, S].
        matrices: float64 [B, 2, 3], as Views.matrices gives them.
        normalisation: a name of data.normalisation.STATISTICS.

    Returns:
        float [B, 3, S, S], normalised; black outside of the image.
    """
    grid = F.affine_grid(
        torch.from_numpy(matrices).to(pixels.device, torch.get_default_dtype()),
        [len(pixels), 1, *pixels.shape[1:]],
        align_corners=False,
    )
    cut = F.grid_sample(
        pixels.unsqueeze(1).to(grid.dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return network_input(cut.squeeze(1), normalisation)


class Projector(nn.Module):
    """An encoder, the mean over the positions of its last features, and a head of two layers.

    Args:
        encoder: an encoder of smp.
        channels: the channels of its last features.
        dimensions: D, the length of the output vectors.
    """

    def __init__(self, encoder: nn.Module, channels: int, dimensions: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, dimensions))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The unit vectors float [B, D] of inputs float [B, 3, S, S]."""
        return F.normalize(self.head(self.encoder(inputs)[-1].mean(dim=(2, 3))), dim=1)


class MoCo(nn.Module):
    """Both encoders, which begin equal, and the queue float32 [Q, D] of keys, which begins as random unit vectors.

    Args:
        query: the encoder that is trained.
        key: the encoder that follows it; it gets the query encoder's weights.
        queue_size: Q.
        generator: draws the queue.
    """

    queue: torch.Tensor

    def __init__(self, query: Projector, key: Projector, queue_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.query, self.key = query, key
        key.load_state_dict(query.state_dict())
        key.requires_grad_(False)
        last = query.head[-1]
        assert isinstance(last, nn.Linear)
        self.register_buffer(
            "queue", F.normalize(torch.randn(queue_size, last.out_features, generator=generator), dim=1)
        )

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the key encoder's weights: momentum x its own + (1 - momentum) x the query encoder's."""
        for key_weight, query_weight in zip(self.key.parameters(), self.query.parameters(), strict=True):
            key_weight.lerp_(query_weight, 1 - momentum)

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor, update: int) -> None:
        """Put the keys [B, D] of the update with this number in place of the oldest ones; Q is a multiple of B."""
        start = update * len(keys) % len(self.queue)
        self.queue[start : start + len(keys)] = keys


def moco_update(
    model: MoCo,
    optimiser: torch.optim.Optimizer,
    pixels: torch.Tensor,
    boxes: Sequence[ContentBox],
    settings: MocoSettings,
    update: int,
    sharing: Sharing,
) -> tuple[float, float]:
    """Take one training step on one batch: a function of weights, queue, seed and the update's number.

    BatchNorm is shuffled: keys are computed in another order than queries, so that a query and its key do not share a
    replica's statistics. Every process has the whole batch, so the shuffle is a choice of rows; only keys, gradients
    and running statistics travel between processes.

    Args:
        model: both encoders and the queue, in train mode.
        optimiser: the optimiser of the query encoder.
        pixels: uint8 [B, S, S] of the whole batch, on the CPU.
        boxes: where the content of each image lies, in pixels.
        settings: the settings of the training.
        update: the batch's number, from 0 on.
        sharing: which rows of the batch this process takes, and how tensors travel.

    Returns:
        The whole batch's mean loss, and the share of queries that are nearest to their image's key. When the loss is
        not finite, neither the query encoder's weights nor the queue have changed, but the key encoder has followed.
    """
    rng = np.random.default_rng([settings.seed, streams.MOCO_VIEW, update])
    count, device = len(pixels), model.queue.device
    query_views, key_views = (Views.draw(rng, count, settings.rotation_degrees, settings.min_crop) for _ in range(2))
    order = rng.permutation(count) if settings.num_replicas > 1 else np.arange(count)
    rows = np.arange(count)[sharing.share(count)]

    def encode(network: Projector, views: Views, rows: npt.NDArray[np.int64], role: int) -> torch.Tensor:
        """Vectors [b, D] of the views of some rows; `role`, 0 for queries and 1 for keys, is a part of the seed."""
        matrices = views.of(rows).matrices([boxes[i] for i in rows], settings.size)
        inputs = view_inputs(pixels[rows].to(device), matrices, settings.normalisation)
        return sharing.forward(network, inputs, settings.num_replicas, (settings.seed, update, role))

    with torch.no_grad():
        model.follow(settings.momentum)
        keys = torch.zeros(count, settings.dimensions, device=device)
        keys[torch.from_numpy(order[rows]).to(device)] = encode(model.key, key_views, order[rows], 1)
    sharing.sum_([keys])
    optimiser.zero_grad(set_to_none=True)
    queries = encode(model.query, query_views, rows, 0)
    loss, nearest = contrastive_loss(
        queries, keys[torch.from_numpy(rows).to(device)], model.queue, settings.temperature
    )
    (loss / count).backward()  # type: ignore[no-untyped-call]
    sharing.sum_(p.grad for p in model.query.parameters() if p.grad is not None)
    whole = torch.stack([loss.detach(), nearest.to(loss.dtype)])
    sharing.sum_([whole])
    mean_loss, accuracy = (whole / count).tolist()
    if math.isfinite(mean_loss):
        optimiser.step()
        model.enqueue(keys, update)
    return mean_loss, accuracy


def contrastive_loss(
    queries: torch.Tensor, keys: torch.Tensor, queue: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE (MoCo's loss): -log of the softmax of a query's similarity to its image's key, against the queue's keys.

    Args:
        queries: unit vectors float [B, D].
        keys: unit vectors float [B, D] of the same images' other views.
        queue: unit vectors float [Q, D].
        temperature: divides the cosine similarities; 0.2 in MoCo v2.

    Returns:
        The sum over the batch, and how many queries are nearest to their image's key; both are scalars.
    """
    positives = (queries * keys).sum(dim=1, keepdim=True)
    logits = torch.cat([positives, queries @ queue.T], dim=1) / temperature
    target = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    return F.cross_entropy(logits, target, reduction="sum"), (logits.argmax(dim=1) == 0).sum()
