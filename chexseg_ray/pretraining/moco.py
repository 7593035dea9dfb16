"""MoCo v2 (Chen et al. 2020) on X-rays, as MoCo-CXR trains it (Sowrirajan et al. 2021).

Every image has two views. A query encoder is trained to tell the key of its image's other view from the keys of earlier
images in a queue; the key encoder follows it as a moving average. Views are flips, rotations by up to 10 degrees and a
random crop; brightness and colour do not change.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from chexseg_ray.data import streams
from chexseg_ray.data.images import ContentBox
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.pretraining.encoders import build_encoder, encoder_channels
from chexseg_ray.updates.step import Pass, step_if_finite


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


def view_inputs(pixels: torch.Tensor, matrices: torch.Tensor, normalisation: str) -> torch.Tensor:
    """Cut one view of each image, bilinearly, as a network's input.

    Args:
        pixels: uint8 [B, S, S].
        matrices: float [B, 2, 3], as Views.matrices gives them, on the pixels' device.
        normalisation: a name of data.normalisation.STATISTICS.

    Returns:
        float [B, 3, S, S], normalised; black outside of the image.
    """
    grid = F.affine_grid(matrices, [len(pixels), 1, *pixels.shape[1:]], align_corners=False)
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
        torch._foreach_lerp_(list(self.key.parameters()), list(self.query.parameters()), 1 - momentum)

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor, oldest: torch.Tensor, allowed: torch.Tensor) -> None:
        """Put the keys [B, D] in place of the `oldest` ones, int64 [B], where `allowed`, a bool scalar, is true."""
        self.queue.index_copy_(0, oldest, torch.where(allowed, keys, self.queue[oldest]))


class MocoBatch(NamedTuple):
    """What an update needs beside weights and queue, drawn on the CPU: its network passes depend on nothing else.

    Args:
        pixels: uint8 [B, S, S] of the whole batch.
        rows: the images that this process's queries show, int64 [b].
        matrices: of their views, float [b, 2, 3].
        key_rows: the images that its keys show, int64 [b].
        key_matrices: of their views, float [b, 2, 3].
        oldest: the places of the queue that the batch's keys will take, int64 [B].
    """

    pixels: torch.Tensor
    rows: torch.Tensor
    matrices: torch.Tensor
    key_rows: torch.Tensor
    key_matrices: torch.Tensor
    oldest: torch.Tensor


def draw_batch(
    pixels: torch.Tensor, boxes: Sequence[ContentBox], settings: MocoSettings, update: int, sharing: Sharing
) -> MocoBatch:
    """Draw the views of a batch, as a function of the seed and the update's number.

    BatchNorm is shuffled: keys are computed in another order than queries, so that a query and its key do not share a
    replica's statistics. Every process has the whole batch, so the shuffle is a choice of rows.

    Args:
        pixels: uint8 [B, S, S] of the whole batch, on the CPU.
        boxes: where the content of each image lies, in pixels.
        settings: the settings of the training.
        update: the batch's number, from 0 on.
        sharing: which rows of the batch this process takes.
    """
    rng = np.random.default_rng([settings.seed, streams.MOCO_VIEW, update])
    count = len(pixels)
    query_views, key_views = (Views.draw(rng, count, settings.rotation_degrees, settings.min_crop) for _ in range(2))
    order = rng.permutation(count) if settings.num_replicas > 1 else np.arange(count)
    rows = np.arange(count)[sharing.share(count)]

    def matrices(views: Views, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        found = views.of(rows).matrices([boxes[i] for i in rows], settings.size)
        return torch.from_numpy(found).to(torch.get_default_dtype())

    oldest = update * count % settings.queue_size + torch.arange(count)
    return MocoBatch(
        pixels,
        torch.from_numpy(rows),
        matrices(query_views, rows),
        torch.from_numpy(order[rows]),
        matrices(key_views, order[rows]),
        oldest,
    )


def moco_update(
    model: MoCo,
    optimiser: torch.optim.Optimizer,
    batch: MocoBatch,
    settings: MocoSettings,
    pass_: Pass,
    sharing: Sharing,
) -> torch.Tensor:
    """Take one training step on one batch; only keys, gradients and running statistics travel between processes.

    Args:
        model: both encoders and the queue, in train mode.
        optimiser: the optimiser of the query encoder.
        batch: the batch, on the model's device.
        settings: the settings of the training.
        pass_: runs an encoder; its last argument is 0 for queries and 1 for keys, a part of the seed of dropout.
        sharing: how tensors travel.

    Returns:
        [2] on the model's device: the whole batch's mean loss, and the share of queries that are nearest to their
        image's key. When the loss is not finite, neither the query encoder's weights nor the queue have changed, but
        the key encoder has followed.
    """
    count = len(batch.pixels)
    with torch.no_grad():
        model.follow(settings.momentum)
        inputs = view_inputs(batch.pixels[batch.key_rows], batch.key_matrices, settings.normalisation)
        keys = torch.zeros(count, settings.dimensions, device=inputs.device)
        keys[batch.key_rows] = pass_(model.key, inputs, 1)
    sharing.sum_([keys])
    optimiser.zero_grad(set_to_none=True)
    queries = pass_(model.query, view_inputs(batch.pixels[batch.rows], batch.matrices, settings.normalisation), 0)
    loss, nearest = contrastive_loss(queries, keys[batch.rows], model.queue, settings.temperature)
    (loss / count).backward()  # type: ignore[no-untyped-call]
    sharing.sum_(p.grad for p in model.query.parameters() if p.grad is not None)
    whole = torch.stack([loss.detach(), nearest.to(loss.dtype)])
    sharing.sum_([whole])
    mean = whole / count
    step_if_finite(optimiser, mean[0])
    model.enqueue(keys, batch.oldest, torch.isfinite(mean[0]))
    return mean


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
