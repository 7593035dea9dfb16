"""Pairs of cells within a radius, the affinity of each (paper eq. 5), and the three losses of IRNet (paper eq. 3, 4, 6).

A pair is a cell and one at most a radius away, each unordered pair once: a direction (dy, dx) of the half plane. All pairs of
one direction are two shifted views of a map, and the largest boundary value on their paths is a running maximum over shifted
views: no index of pairs exists anywhere. Maps have the batch last, so that a view's rows are long runs of memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from chexseg_ray.pseudo.ir_labels import BACKGROUND, FOREGROUND

EPSILON = 1e-5  # inside both logarithms, as in the released code
_GROUP = 10  # pathologies whose labels are one table index: 2^10 entries

Direction = tuple[int, int]


@cache
def directions(radius: int) -> tuple[Direction, ...]:
    """The displacements (dy, dx) shorter than the radius, one of each opposite two: (0, x > 0), then y > 0."""
    reach = range(1 - radius, radius)
    half = [(0, x) for x in reach if x > 0] + [(y, x) for y in reach if y > 0 for x in reach]
    return tuple((y, x) for y, x in half if x * x + y * y < radius * radius)


@cache
def path(direction: Direction) -> tuple[Direction, ...]:
    """The cells between a pair's ends, both included: those of its bounding box closer than one cell to its line."""
    dy, dx = direction
    box = [(y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1)]
    return tuple((y, x) for y, x in box if (y * dx - x * dy) ** 2 < dy * dy + dx * dx)


def shifted(maps: torch.Tensor, direction: Direction, cell: Direction) -> torch.Tensor:
    """The cells at an offset from every pair's first end, as a view.

    Args:
        maps: [h, w, ...].
        direction: (dy, dx) of the pairs.
        cell: offset (y, x) within the pair's bounding box: (0, 0) is the first end, the direction itself the second.

    Returns:
        [h - dy, w - |dx|, ...], one entry a pair; empty when the map is smaller than the direction.
    """
    dy, dx = direction
    height, width = max(maps.shape[0] - dy, 0), max(maps.shape[1] - abs(dx), 0)
    top, left = cell[0], cell[1] - min(dx, 0)
    return maps[top : top + height, left : left + width]


def path_max(boundary: torch.Tensor, direction: Direction) -> torch.Tensor:
    """The largest value on every pair's path: [h, w, ...] to [h - dy, w - |dx|, ...]."""
    cells = path(direction)
    top = shifted(boundary, direction, cells[0]).clone()
    for cell in cells[1:]:
        torch.maximum(top, shifted(boundary, direction, cell), out=top)
    return top


def affinity(boundary: torch.Tensor, direction: Direction) -> torch.Tensor:
    """a = 1 - max over the path of the boundary map (paper eq. 5): [h, w, ...] in [0, 1] to [h - dy, w - |dx|, ...]."""
    return 1 - path_max(boundary, direction)


class PairLabels:
    """IR labels of a batch with the kind of every pair: both foreground, both background, or one of each.

    A cell's labels of up to ten pathologies are the bits of one integer, so a pair's kinds are a few bitwise operations, and a
    sum over pathologies is one look-up.
    """

    def __init__(self, labels: torch.Tensor, radius: int) -> None:
        """labels: uint8 [B, K, h, w] of 0, 1 and 255."""
        self.num_pathologies = labels.shape[1]
        self.radius = radius
        self._foreground, self._background = _bits(labels == FOREGROUND), _bits(labels == BACKGROUND)

    def kinds(self, direction: Direction) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """For each group of pathologies its number and the bits int32 [h - dy, w - |dx|, B] of the three kinds."""
        for group, (foreground, background) in enumerate(zip(self._foreground, self._background, strict=True)):
            f1, f2 = shifted(foreground, direction, (0, 0)), shifted(foreground, direction, direction)
            b1, b2 = shifted(background, direction, (0, 0)), shifted(background, direction, direction)
            yield group, f1 & f2, b1 & b2, (f1 & b2) | (b1 & f2)

    def counts(self) -> torch.Tensor:
        """int64 [K, 4]: foreground cells, foreground pairs, background pairs, pairs of one of each. Over replicas they are added."""
        histograms = torch.zeros(len(self._foreground), 4, 1 << _GROUP, dtype=torch.int64, device=self._foreground.device)
        for group, bits in enumerate(self._foreground):
            histograms[group, 0] = torch.bincount(bits.flatten(), minlength=1 << _GROUP)
        for direction in directions(self.radius):
            for group, *kinds in self.kinds(direction):
                for kind, bits in enumerate(kinds, start=1):
                    histograms[group, kind] += torch.bincount(bits.flatten(), minlength=1 << _GROUP)
        per_bit = (histograms.double() @ _bit_table(histograms.device)).to(torch.int64)  # exact up to 2^53 pairs
        return per_bit.permute(0, 2, 1).reshape(-1, 4)[: self.num_pathologies].contiguous()


def _bits(chosen: torch.Tensor) -> torch.Tensor:
    """bool [B, K, h, w] to int32 [ceil(K / 10), h, w, B]."""
    groups = torch.split(chosen, _GROUP, dim=1)
    packed = [sum((g[:, k].to(torch.int32) << k for k in range(g.shape[1])), torch.zeros_like(g[:, 0], dtype=torch.int32)) for g in groups]
    return torch.stack([p.permute(1, 2, 0) for p in packed]).contiguous()


def _bit_table(device: torch.device) -> torch.Tensor:
    """float64 [1024, 10]: the bits of each index."""
    index = torch.arange(1 << _GROUP, device=device)
    return ((index[:, None] >> torch.arange(_GROUP, device=device)) & 1).double()


@dataclass(frozen=True)
class IrnetLosses:
    """Scalars: boundary (paper eq. 6), foreground and background displacement (eq. 3 and 4; 0 without the branch)."""

    boundary: torch.Tensor
    foreground: torch.Tensor
    background: torch.Tensor


def irnet_losses(boundary: torch.Tensor, displacement: torch.Tensor | None, labels: PairLabels, counts: torch.Tensor | None = None) -> IrnetLosses:
    """The losses of a batch, each the mean over the pathologies that have foreground in it.

    Per pathology and with its own number of pairs, over the batch:
    boundary = mean over foreground pairs of -log a, halved, plus the same over background pairs, plus the mean over unequal
    pairs of -log(1 - a) (eq. 6); foreground displacement = mean of |D_1 - D_2 - (x_2 - x_1)| (eq. 3, for a D that points to the
    centroid); background displacement = mean of |D_1 - D_2| (eq. 4). A kind without pairs adds nothing.

    Args:
        boundary: float [B, h, w] in [0, 1].
        displacement: float [B, 2, h, w], (dy, dx) in cells; or None.
        labels: of the same batch.
        counts: int64 [K, 4] of the whole batch, when this is one replica's share of it; the losses are then this share's part.

    Returns:
        Scalars; gradients reach boundary and displacement. Extra memory is a few maps, whatever the radius.
    """
    counts = labels.counts() if counts is None else counts
    out: torch.Tensor = _PairLosses.apply(boundary, displacement, labels, _weights(counts, boundary))
    return IrnetLosses(*out.unbind())


def _weights(counts: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[groups, 3, 1024]: for each kind of pair and each set of pathologies, the sum of 1 / (positive pathologies x pairs)."""
    positive = counts[:, 0] > 0
    each = torch.where(positive[:, None], 1 / counts[:, 1:].clamp(min=1).double(), 0.0) / positive.sum().clamp(min=1)
    padded = torch.zeros(-len(each) % _GROUP + len(each), 3, dtype=torch.float64, device=each.device)
    padded[: len(each)] = each
    table = _bit_table(each.device) @ padded.view(-1, _GROUP, 3)
    return table.permute(0, 2, 1).to(like.dtype).contiguous()


class _PairLosses(torch.autograd.Function):
    """Losses and their gradients in one pass over the directions: nothing of a direction outlives it."""

    @staticmethod
    def forward(ctx: Any, boundary: torch.Tensor, displacement: torch.Tensor | None, labels: PairLabels, weights: torch.Tensor) -> torch.Tensor:
        maps = boundary.detach().permute(1, 2, 0).contiguous()
        slopes = torch.zeros_like(maps)
        fields = None if displacement is None else displacement.detach().permute(2, 3, 1, 0).contiguous()
        field_slopes = [torch.zeros_like(fields), torch.zeros_like(fields)] if fields is not None else []
        losses = torch.zeros(3, dtype=torch.float64, device=maps.device)
        for direction in directions(labels.radius):
            if maps.shape[0] <= direction[0] or maps.shape[1] <= abs(direction[1]):
                continue
            foreground, background, unequal = _pair_weights(labels, direction, weights)
            losses[0] += _boundary_term(maps, slopes, direction, (foreground + background) / 2, unequal)
            if fields is not None:
                target = torch.tensor(direction, dtype=fields.dtype, device=fields.device)[:, None]
                losses[1] += _displacement_term(fields, field_slopes[0], direction, foreground, target)
                losses[2] += _displacement_term(fields, field_slopes[1], direction, background, torch.zeros_like(target))
        ctx.save_for_backward(slopes.permute(2, 0, 1), *(s.permute(3, 2, 0, 1) for s in field_slopes))
        return losses.to(boundary.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        slopes, *field_slopes = ctx.saved_tensors
        outer = grads[0]
        field = outer[1] * field_slopes[0] + outer[2] * field_slopes[1] if field_slopes else None
        return outer[0] * slopes, field, None, None


def _pair_weights(labels: PairLabels, direction: Direction, weights: torch.Tensor) -> list[torch.Tensor]:
    """The weight [h - dy, w - |dx|, B] that each pair of a direction has in the three kinds' sums."""
    sums: list[torch.Tensor] = []
    for group, *kinds in labels.kinds(direction):
        own = [weights[group, kind].index_select(0, bits.flatten()).view(bits.shape) for kind, bits in enumerate(kinds)]
        sums = own if not sums else [a + b for a, b in zip(sums, own, strict=True)]
    return sums


def _boundary_term(maps: torch.Tensor, slopes: torch.Tensor, direction: Direction, equal: torch.Tensor, unequal: torch.Tensor) -> torch.Tensor:
    """Eq. 6's part of one direction; adds its gradient to `slopes`, at the first cell of each path that has the maximum."""
    top = path_max(maps, direction)
    near, far = 1 + EPSILON - top, top + EPSILON
    loss = -(equal * near.log() + unequal * far.log()).sum(dtype=torch.float64)
    slope = equal / near - unequal / far
    for cell in path(direction):
        own = torch.where(shifted(maps, direction, cell) == top, slope, 0)
        shifted(slopes, direction, cell).add_(own)
        slope.sub_(own)
    return loss


def _displacement_term(fields: torch.Tensor, slopes: torch.Tensor, direction: Direction, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Eq. 3's or 4's part of one direction, fields [h, w, 2, B]; adds its gradient to `slopes`."""
    off = shifted(fields, direction, (0, 0)) - shifted(fields, direction, direction) - target
    slope = off.sign() * weight.unsqueeze(2)
    shifted(slopes, direction, (0, 0)).add_(slope)
    shifted(slopes, direction, direction).sub_(slope)
    return (off.abs() * weight.unsqueeze(2)).sum(dtype=torch.float64)


def total_loss(losses: IrnetLosses, weights: str) -> torch.Tensor:
    """Eq. 7: the `sum` of the three; `halves` weighs as the irn code does: half the boundary loss, a quarter of each displacement loss."""
    if weights == "sum":
        return losses.boundary + losses.foreground + losses.background
    return losses.boundary / 2 + (losses.foreground + losses.background) / 4
