"""The affinities of pairs of cells (paper eq. 5), and the three losses of IRNet (paper eq. 3, 4 and 6).

`reference_losses` writes the equations out pair by pair, for readers; training uses `irnet_losses`, which computes the
same numbers and their gradients fast. On a CPU it takes one direction of pairs after another: the largest boundary
value on their paths is a running maximum over shifted views, so no index of pairs is ever built. A GPU would spend its
time on starting such small pieces of work, so there `grouped_pairs` takes many directions at once.
"""

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import torch

from chexseg_ray.pseudo.grouped_pairs import grouped_losses
from chexseg_ray.pseudo.ir_labels import BACKGROUND, FOREGROUND
from chexseg_ray.pseudo.pairs import (
    EPSILON,
    LABEL_GROUP,
    Direction,
    PairLabels,
    bit_table,
    directions,
    path,
    shifted,
)


def path_max(boundary: torch.Tensor, direction: Direction) -> torch.Tensor:
    """The largest value on the path of every pair of one direction.

    Args:
        boundary: float [h, w, ...].
        direction: (dy, dx) of the pairs.

    Returns:
        float [h - dy, w - |dx|, ...], one entry per pair.
    """
    cells = path(direction)
    top = shifted(boundary, direction, cells[0]).clone()
    for cell in cells[1:]:
        torch.maximum(top, shifted(boundary, direction, cell), out=top)
    return top


def affinity(boundary: torch.Tensor, direction: Direction) -> torch.Tensor:
    """The affinity of every pair of one direction: a = 1 - the boundary map's maximum on the path (paper eq. 5).

    Args:
        boundary: float [h, w, ...] in [0, 1].
        direction: (dy, dx) of the pairs.

    Returns:
        float [h - dy, w - |dx|, ...] in [0, 1], one entry per pair.
    """
    return 1 - path_max(boundary, direction)


@dataclass(frozen=True)
class IrnetLosses:
    """The three losses of IRNet, each a scalar.

    Args:
        boundary: the boundary loss (paper eq. 6).
        foreground: the displacement loss of foreground pairs (eq. 3); 0 without the displacement branch.
        background: the displacement loss of background pairs (eq. 4); 0 without the displacement branch.
    """

    boundary: torch.Tensor
    foreground: torch.Tensor
    background: torch.Tensor


def reference_losses(
    boundary: torch.Tensor, displacement: torch.Tensor, labels: torch.Tensor, radius: int
) -> IrnetLosses:
    """Paper eq. 3 to 6 written out pair by pair, for readers and tests; slow: `irnet_losses` computes the same numbers.

    The paper's delta(i, j) is D_j - D_i. Here it is D_i - D_j, because D points to the centroid (paper appendix A.2):
    two cells of one instance then differ by D_i - D_j = x_j - x_i, as eq. 3 asks. EPSILON keeps the logarithms finite.

    Args:
        boundary: float [B, h, w] in [0, 1].
        displacement: float [B, 2, h, w], (dy, dx) in cells.
        labels: IR labels uint8 [B, K, h, w] of 0, 1 and 255.
        radius: in cells; two cells closer than this are a pair.

    Returns:
        The mean of each loss over the pathologies that have foreground in the batch; 0 when none has.
    """

    def mean(terms: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(terms).mean() if terms else boundary.new_zeros(())

    cells = product(range(labels.shape[2]), range(labels.shape[3]))
    neighbours = [(i, j) for i, j in combinations(cells, 2) if math.dist(i, j) < radius]
    boundaries, foregrounds, backgrounds = [], [], []
    for k in range(labels.shape[1]):
        if not (labels[:, k] == FOREGROUND).any():
            continue
        pairs = defaultdict(list)  # by the labels of both ends; pairs with a 255 stay unused
        for b, (i, j) in product(range(len(labels)), neighbours):
            delta_hat = (j[0] - i[0], j[1] - i[1])  # x_j - x_i
            a = 1 - torch.stack([boundary[b, i[0] + y, i[1] + x] for y, x in path(delta_hat)]).max()  # eq. 5
            delta = displacement[b, :, *i] - displacement[b, :, *j]
            first, second = sorted((int(labels[b, k, *i]), int(labels[b, k, *j])))
            pairs[first, second].append((a, delta, torch.tensor(delta_hat)))
        same_fg, same_bg = pairs[FOREGROUND, FOREGROUND], pairs[BACKGROUND, BACKGROUND]
        unequal = pairs[BACKGROUND, FOREGROUND]
        foregrounds.append(mean([(delta_hat - delta).abs().sum() for _, delta, delta_hat in same_fg]))  # eq. 3
        backgrounds.append(mean([delta.abs().sum() for _, delta, _ in same_bg]))  # eq. 4
        boundaries.append(  # eq. 6
            mean([-(a + EPSILON).log() for a, _, _ in same_fg]) / 2
            + mean([-(a + EPSILON).log() for a, _, _ in same_bg]) / 2
            + mean([-(1 - a + EPSILON).log() for a, _, _ in unequal])
        )
    return IrnetLosses(mean(boundaries), mean(foregrounds), mean(backgrounds))


def irnet_losses(
    boundary: torch.Tensor, displacement: torch.Tensor | None, labels: PairLabels, counts: torch.Tensor | None = None
) -> IrnetLosses:
    """The losses of a batch, each the mean over the pathologies that have foreground in it.

    For each pathology, over its pairs (i, j) in the batch, with a the affinity (eq. 5) and x the cells:
    - boundary (eq. 6): half the mean of -log a over foreground pairs, plus half the same mean over background pairs,
      plus the mean of -log(1 - a) over pairs of one of each;
    - foreground (eq. 3): the mean of |D_i - D_j - (x_j - x_i)| over foreground pairs, as D points to the centroid;
    - background (eq. 4): the mean of |D_i - D_j| over background pairs.
    A kind without pairs adds nothing. `reference_losses` writes the sums out.

    Args:
        boundary: float [B, h, w] in [0, 1].
        displacement: float [B, 2, h, w], (dy, dx) in cells; or None.
        labels: the labels of the same batch.
        counts: int64 [K, 4], the counts of the whole batch when the other arguments are one replica's share of it; the
            losses are then this share's part.

    Returns:
        Scalars; gradients reach boundary and displacement. Extra memory is a few maps, whatever the radius.
    """
    if counts is None:
        counts = labels.counts()
    losses: torch.Tensor = _PairLosses.apply(boundary, displacement, labels, kind_weights(counts, boundary))
    return IrnetLosses(*losses.unbind())


def kind_weights(counts: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Compute the weight of a pair by its kind and the set of pathologies that it is of this kind for.

    Args:
        counts: int64 [K, 4], as PairLabels.counts gives them.
        like: a tensor whose dtype the weights get.

    Returns:
        float [groups, 3, 1024]: the sum, over the pathologies in the set, of 1 / (positive pathologies x pairs).
    """
    positive = counts[:, 0] > 0
    weight = torch.where(positive[:, None], 1 / counts[:, 1:].clamp(min=1).double(), 0.0) / positive.sum().clamp(min=1)
    padded = torch.zeros(-len(weight) % LABEL_GROUP + len(weight), 3, dtype=torch.float64, device=weight.device)
    padded[: len(weight)] = weight
    table = bit_table(weight.device) @ padded.view(-1, LABEL_GROUP, 3)
    return table.permute(0, 2, 1).to(like.dtype).contiguous()


class _PairLosses(torch.autograd.Function):
    """The losses and their gradients, both computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, boundary: torch.Tensor, displacement: torch.Tensor | None, labels: PairLabels, weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the losses [3], boundary, foreground and background, and keep their slopes by the two maps.

        Args:
            ctx: keeps the slopes for `backward`.
            boundary: float [B, h, w] in [0, 1].
            displacement: float [B, 2, h, w] in cells, or None.
            labels: the labels of the batch.
            weights: float [groups, 3, 1024], as kind_weights returns them.
        """
        maps = boundary.detach().permute(1, 2, 0).contiguous()
        fields = None if displacement is None else displacement.detach().permute(2, 3, 1, 0).contiguous()
        compute = successive_losses if maps.device.type == "cpu" else grouped_losses
        losses, slopes, field_slopes = compute(maps, fields, labels, weights)
        ctx.save_for_backward(slopes.permute(2, 0, 1), *(slope.permute(3, 2, 0, 1) for slope in field_slopes))
        return losses.to(boundary.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None]:
        """Return the gradients by both maps: the slopes in `ctx` times `grads[0]`, the gradient [3] by the losses."""
        slopes, *field_slopes = ctx.saved_tensors
        outer = grads[0]
        field = outer[1] * field_slopes[0] + outer[2] * field_slopes[1] if field_slopes else None
        return outer[0] * slopes, field, None, None


def successive_losses(
    maps: torch.Tensor, fields: torch.Tensor | None, labels: PairLabels, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Compute what grouped_losses does, one direction after another; nothing of a direction outlives its turn.

    Args:
        maps: the boundary maps, float [h, w, B].
        fields: the displacement fields, float [h, w, 2, B] in cells; or None.
        labels: the labels of the same batch.
        weights: of a pair by its kind and pathologies, float [groups, 3, 1024].

    Returns:
        The losses float64 [3]; the slopes of the boundary loss by the maps, float [h, w, B]; the slopes of the
        displacement losses by the fields, two float [h, w, 2, B], or none.
    """
    slopes = torch.zeros_like(maps)
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
    return losses, slopes, field_slopes


def _pair_weights(labels: PairLabels, direction: Direction, weights: torch.Tensor) -> list[torch.Tensor]:
    """The weights [h - dy, w - |dx|, B] of a direction's pairs, one tensor for each of the three kinds."""
    sums: list[torch.Tensor] = []
    for group, *kinds in labels.kinds(direction):
        looked_up = [
            weights[group, kind].index_select(0, bits.flatten()).view(bits.shape) for kind, bits in enumerate(kinds)
        ]
        if sums:
            sums = [total + weight for total, weight in zip(sums, looked_up, strict=True)]
        else:
            sums = looked_up
    return sums


def _boundary_term(
    maps: torch.Tensor, slopes: torch.Tensor, direction: Direction, equal: torch.Tensor, unequal: torch.Tensor
) -> torch.Tensor:
    """One direction's part of eq. 6.

    Its gradient is added to `slopes`, at the first cell of each path that has the maximum.

    Args:
        maps: the boundary maps, float [h, w, B].
        slopes: float [h, w, B], changed in place.
        direction: (dy, dx) of the pairs.
        equal: weights of pairs with equal labels, float [h - dy, w - |dx|, B].
        unequal: weights of pairs with one foreground and one background cell, of the same shape.

    Returns:
        A float64 scalar.
    """
    top = path_max(maps, direction)
    near, far = 1 + EPSILON - top, top + EPSILON
    loss = -(equal * near.log() + unequal * far.log()).sum(dtype=torch.float64)
    slope = equal / near - unequal / far
    for cell in path(direction):
        at_maximum = torch.where(shifted(maps, direction, cell) == top, slope, 0)
        shifted(slopes, direction, cell).add_(at_maximum)
        slope.sub_(at_maximum)
    return loss


def _displacement_term(
    fields: torch.Tensor, slopes: torch.Tensor, direction: Direction, weight: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """One direction's part of eq. 3 or eq. 4; its gradient is added to `slopes`.

    Args:
        fields: the displacement fields, float [h, w, 2, B].
        slopes: float [h, w, 2, B], changed in place.
        direction: (dy, dx) of the pairs.
        weight: weights of the pairs, float [h - dy, w - |dx|, B].
        target: float [2, 1], what D_i - D_j should be: the direction (eq. 3) or zero (eq. 4).

    Returns:
        A float64 scalar.
    """
    off = shifted(fields, direction, (0, 0)) - shifted(fields, direction, direction) - target
    slope = off.sign() * weight.unsqueeze(2)
    shifted(slopes, direction, (0, 0)).add_(slope)
    shifted(slopes, direction, direction).sub_(slope)
    return (off.abs() * weight.unsqueeze(2)).sum(dtype=torch.float64)


def total_loss(losses: IrnetLosses, weights: str) -> torch.Tensor:
    """The loss that training minimises (paper eq. 7).

    Args:
        losses: the three losses.
        weights: `sum`, the paper's plain sum; `halves`, the irn code's weights: half the boundary loss and a quarter of
            each displacement loss.

    Returns:
        A scalar.
    """
    if weights == "sum":
        return losses.boundary + losses.foreground + losses.background
    return losses.boundary / 2 + (losses.foreground + losses.background) / 4
