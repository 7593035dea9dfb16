"""MoCo v2 (Chen et al. 2020) as MoCo-CXR (Sowrirajan et al. 2021) trains it on X-rays: two views of an image are neighbours.

A query encoder is trained to find, among the keys of a queue of earlier images, the key of the other view of its image; the key encoder
follows it as a moving average. Views are flips, rotations by up to 10 degrees and a random crop; no change of brightness or colour.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from chexseg_ray.data.images import ContentBox
from chexseg_ray.data.normalisation import network_input


@dataclass(frozen=True)
class Views:
    """How one view of each of B images is cut: mirrored bool [B]; angle float64 [B], degrees; side float64 [B], of the square window in
    units of the content's short side; place float64 [B, 2], of the window in the room it has down and across, 0 to 1."""

    mirrored: npt.NDArray[np.bool_]
    angle: npt.NDArray[np.float64]
    side: npt.NDArray[np.float64]
    place: npt.NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator, count: int, degrees: float, min_crop: float) -> "Views":
        """Uniform draws; min_crop 1 is MoCo-CXR's crop, as large as the short side."""
        return cls(
            rng.random(count) < 0.5, rng.uniform(-degrees, degrees, count), rng.uniform(min_crop, 1.0, count), rng.uniform(0.0, 1.0, (count, 2))
        )  # fmt: skip

    def of(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> "Views":
        """Of some of the images."""
        return Views(self.mirrored[rows], self.angle[rows], self.side[rows], self.place[rows])

    def matrices(self, boxes: Sequence[ContentBox], size: int) -> npt.NDArray[np.float64]:
        """[B, 2, 3]: from a view's pixel, in [-1, 1], to the letterboxed image's. The content is mirrored, turned about its centre
        (black comes in at its corners), then cut."""
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


def view_inputs(pixels: torch.Tensor, matrices: npt.NDArray[np.float64], normalisation: str) -> torch.Tensor:
    """Network inputs [B, 3, S, S] of views of uint8 [B, S, S]; bilinear, black outside of the image."""
    grid = F.affine_grid(
        torch.from_numpy(matrices).to(pixels.device, torch.get_default_dtype()), [len(pixels), 1, *pixels.shape[1:]], align_corners=False
    )
    cut = F.grid_sample(pixels.unsqueeze(1).to(grid.dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return network_input(cut.squeeze(1), normalisation)


class Projector(nn.Module):
    """An encoder, the mean of its last features, and a head of two layers: unit vectors float [B, D]."""

    def __init__(self, encoder: nn.Module, channels: int, dimensions: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, dimensions))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Of float [B, 3, S, S]."""
        return F.normalize(self.head(self.encoder(inputs)[-1].mean(dim=(2, 3))), dim=1)


class MoCo(nn.Module):
    """Both encoders, which begin equal, and the queue float32 [Q, D] of keys, which begins as random unit vectors."""

    queue: torch.Tensor

    def __init__(self, query: Projector, key: Projector, queue_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.query, self.key = query, key
        key.load_state_dict(query.state_dict())
        key.requires_grad_(False)
        last = query.head[-1]
        assert isinstance(last, nn.Linear)
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, last.out_features, generator=generator), dim=1))

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the key encoder's weights: momentum x its own + (1 - momentum) x the query encoder's."""
        for own, other in zip(self.key.parameters(), self.query.parameters(), strict=True):
            own.lerp_(other, 1 - momentum)

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor, update: int) -> None:
        """Put the keys [B, D] of update u in the place of the oldest; Q is a multiple of B."""
        start = update * len(keys) % len(self.queue)
        self.queue[start : start + len(keys)] = keys


def contrastive_loss(queries: torch.Tensor, keys: torch.Tensor, queue: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """InfoNCE: -log of the softmax, over its own key and the queue's, of the similarity to its own key.

    Args:
        queries: unit vectors float [B, D].
        keys: of the same images' other views, float [B, D].
        queue: float [Q, D].
        temperature: divides the cosine similarities; 0.2 in MoCo v2.

    Returns:
        The sum over the batch, and how many queries are nearest to their own key.
    """
    own = (queries * keys).sum(dim=1, keepdim=True)
    logits = torch.cat([own, queries @ queue.T], dim=1) / temperature
    target = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    return F.cross_entropy(logits, target, reduction="sum"), (logits.argmax(dim=1) == 0).sum()
