"""IRNet's losses over pairs, with the directions of equal path length taken together: the form for GPUs.

Directions one after another are 21,000 small kernels an update (radius 10), which a GPU finishes faster than its host
starts them. Here they are 1,200. Cells are looked up by their position in a map with a margin, whose labels are
empty, so that every cell is the first end of a pair of every direction. Gradients are gathered too: each cell collects
from the pairs on whose path it has the maximum, in a fixed order, where scattering would add in any order.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from chexseg_ray.pseudo.pairs import EPSILON, PairLabels, directions, kinds_of, path


@dataclass(frozen=True)
class Group:
    """D directions whose paths have L cells each; offsets are positions in the map with margins.

    Args:
        offsets: of each path cell from the pair's first end, int64 [D, L, 1].
        second: of the second end from the first, int64 [D, 1].
        directions: (dy, dx), float32 [D, 1, 2, 1].
    """

    offsets: torch.Tensor
    second: torch.Tensor
    directions: torch.Tensor


@dataclass(frozen=True)
class Groups:
    """The directions of a radius on maps of one size.

    Args:
        margin: cells on each side of a map.
        height: of a map without margins.
        width: likewise.
        cells: the positions of a map's cells among those with margins, int64 [h w].
        groups: by path length.
    """

    margin: int
    height: int
    width: int
    cells: torch.Tensor
    groups: Sequence[Group]

    def look_up(self, flat: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Look up cells by their places, with one set of cells for each direction or one for all.

        Args:
            flat: of flat() or pairs_flat(), [cells, B] or [D, cells, B].
            places: int64 [D, ...].

        Returns:
            [D, ..., B]. (By a second index, as PyTorch's kernel for one index takes five times as long on a GPU.)
        """
        count = len(places)
        by_direction = flat if flat.dim() == 3 else flat.expand(count, *flat.shape)
        number = torch.arange(count, device=flat.device).view(-1, *[1] * (places.dim() - 1))
        return by_direction[number, places]

    def flat(self, maps: torch.Tensor) -> torch.Tensor:
        """Add margins of zeros to [..., h, w, B], and flatten the cells: [..., (h + 2 margin)(w + 2 margin), B]."""
        m = self.margin
        return F.pad(maps, (0, 0, m, m, m, m)).flatten(-3, -2)

    def pairs_flat(self, values: torch.Tensor) -> torch.Tensor:
        """Do so with values of pairs by their first ends, [D, h w, B]."""
        return self.flat(values.view(len(values), self.height, self.width, -1))


@cache
def groups_of(radius: int, height: int, width: int, device: torch.device) -> Groups:
    """Return the groups of a radius (in cells) for maps of height x width cells, on a device; made once."""
    margin = radius - 1
    stride = width + 2 * margin
    by_length = defaultdict(list)
    for direction in directions(radius):
        by_length[len(path(direction))].append(direction)
    groups = []
    for _, found in sorted(by_length.items()):
        offsets = torch.tensor([[[y * stride + x] for y, x in path(direction)] for direction in found])
        second = torch.tensor([[dy * stride + dx] for dy, dx in found])
        targets = torch.tensor(found, dtype=torch.float32).view(-1, 1, 2, 1)
        groups.append(Group(offsets.to(device), second.to(device), targets.to(device)))
    rows = (torch.arange(height) + margin) * stride
    cells = (rows[:, None] + margin + torch.arange(width)).flatten()
    return Groups(margin, height, width, cells.to(device), groups)


def grouped_losses(
    maps: torch.Tensor, fields: torch.Tensor | None, labels: PairLabels, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Compute IRNet's losses and their slopes.

    Args:
        maps: the boundary maps, float [h, w, B].
        fields: the displacement fields, float [h, w, 2, B] in cells; or None.
        labels: the labels of the same batch.
        weights: of a pair by its kind and pathologies, float [groups, 3, 1024].

    Returns:
        The losses float64 [3] (boundary, foreground, background); the slope of the first by the maps, float [h, w, B];
        the slopes of the others by the fields, two float [h, w, 2, B], or none.
    """
    at = groups_of(labels.radius, *maps.shape[:2], maps.device)
    flat_maps, flat_labels = at.flat(maps), (at.flat(labels.foreground), at.flat(labels.background))
    flat_fields = None if fields is None else at.flat(fields.flatten(2))
    losses = torch.zeros(3, dtype=torch.float64, device=maps.device)
    slopes = torch.zeros_like(maps).view(len(at.cells), -1)
    field_slopes = [] if fields is None else [torch.zeros_like(fields).view(len(at.cells), 2, -1) for _ in range(2)]
    for group in at.groups:
        foreground, background, unequal = _pair_weights(flat_labels, at, group, weights)
        loss, slope = _boundary_term(flat_maps, at, group, (foreground + background) / 2, unequal)
        losses[0] += loss
        slopes += slope
        if flat_fields is not None:
            kinds = ((foreground, group.directions), (background, torch.zeros_like(group.directions)))
            for number, (weight, target) in enumerate(kinds):
                loss, slope = _displacement_term(flat_fields, at, group, weight, target)
                losses[1 + number] += loss
                field_slopes[number] += slope
    shaped = [slope.view(*maps.shape[:2], 2, -1) for slope in field_slopes]
    return losses, slopes.view_as(maps), shaped


def _pair_weights(
    labels: tuple[torch.Tensor, torch.Tensor], at: Groups, group: Group, weights: torch.Tensor
) -> list[torch.Tensor]:
    """The weights [D, h w, B] of a group's pairs, one tensor for each of the three kinds."""
    sums: list[torch.Tensor] = []
    for number in range(len(weights)):
        (f1, f2), (b1, b2) = (
            (bits[number][at.cells], at.look_up(bits[number], at.cells + group.second)) for bits in labels
        )
        looked_up = [weights[number, kind][bits] for kind, bits in enumerate(kinds_of(f1, f2, b1, b2))]
        sums = [total + weight for total, weight in zip(sums, looked_up, strict=True)] if sums else looked_up
    return sums


def _boundary_term(
    maps: torch.Tensor, at: Groups, group: Group, equal: torch.Tensor, unequal: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A group's part of eq. 6, and its slope by the maps, at the first cell of each path that has the maximum.

    Args:
        maps: the boundary maps with margins, float [cells, B].
        at: the positions.
        group: the directions.
        equal: weights of pairs with equal labels, float [D, h w, B].
        unequal: weights of pairs with one foreground and one background cell, of the same shape.

    Returns:
        A float64 scalar, and float [h w, B].
    """
    top, first = at.look_up(maps, at.cells + group.offsets).max(dim=1)
    near, far = 1 + EPSILON - top, top + EPSILON
    loss = -(equal * near.log() + unequal * far.log()).sum(dtype=torch.float64)
    slope = at.pairs_flat(equal / near - unequal / far)
    which = at.pairs_flat(first.to(torch.int16))
    starts = at.cells - group.offsets  # of the pairs that have a cell at each place of their path, [D, L, h w]
    place = torch.arange(group.offsets.shape[1], dtype=torch.int16, device=maps.device).view(-1, 1, 1)
    chosen = at.look_up(which, starts) == place
    return loss, (at.look_up(slope, starts) * chosen).sum(dim=(0, 1))


def _displacement_term(
    fields: torch.Tensor, at: Groups, group: Group, weight: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A group's part of eq. 3 or eq. 4, and its slope by the fields.

    Args:
        fields: the displacement fields with margins, float [cells, 2 B].
        at: the positions.
        group: the directions.
        weight: weights of the pairs, float [D, h w, B].
        target: what D_i - D_j should be, float [D, 1, 2, 1].

    Returns:
        A float64 scalar, and float [h w, 2, B].
    """
    count = len(at.cells)
    second = at.look_up(fields, at.cells + group.second)
    off = (fields[at.cells] - second).view(len(target), count, 2, -1) - target
    by_component = weight.unsqueeze(2)
    loss = (off.abs() * by_component).sum(dtype=torch.float64)
    slope = off.sign() * by_component
    of_second = at.look_up(at.pairs_flat(slope.flatten(2)), at.cells - group.second)
    return loss, slope.sum(dim=0) - of_second.sum(dim=0).view(count, 2, -1)
