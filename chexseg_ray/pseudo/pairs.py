"""Pairs of neighbouring cells: their directions, the cells between their ends, and the labels of both ends.

A pair is two cells closer than the radius, and each unordered pair counts once: its direction (dy, dx) lies in one half
plane. All pairs of one direction are two shifted views of a map. Maps have the batch last, so that a view's rows are
long runs of memory.
"""

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F

from chexseg_ray.pseudo.ir_labels import BACKGROUND, FOREGROUND

EPSILON = 1e-5  # inside both logarithms of eq. 6, as in the released code
LABEL_GROUP = 10  # pathologies whose labels are one table index: 2^10 entries

Direction = tuple[int, int]


@cache
def directions(radius: int) -> tuple[Direction, ...]:
    """Return the directions (dy, dx) shorter than `radius`, one of each opposite two: (0, dx > 0), then dy > 0."""
    reach = range(1 - radius, radius)
    half = [(0, x) for x in reach if x > 0] + [(y, x) for y in reach if y > 0 for x in reach]
    return tuple((y, x) for y, x in half if x * x + y * y < radius * radius)


@cache
def path(direction: Direction) -> tuple[Direction, ...]:
    """Return the cells (y, x) on the line between a pair's ends, from its first end; the paper's Pi_ij (eq. 5).

    These are the cells of the pair's bounding box closer than one cell to the line; both ends belong to them.

    Args:
        direction: (dy, dx) from the first end to the second, one of `directions`.
    """
    dy, dx = direction
    box = [(y, x) for y in range(dy + 1) for x in range(min(dx, 0), max(dx, 0) + 1)]
    return tuple((y, x) for y, x in box if (y * dx - x * dy) ** 2 < dy * dy + dx * dx)


def shifted(maps: torch.Tensor, direction: Direction, cell: Direction) -> torch.Tensor:
    """View the cell at one offset from the first end of every pair.

    Args:
        maps: [h, w, ...], of any dtype.
        direction: (dy, dx) of the pairs.
        cell: offset (y, x) in the pair's bounding box; (0, 0) is the first end, the direction itself is the second.

    Returns:
        [h - dy, w - |dx|, ...], one entry per pair; empty when the map is smaller than the direction.
    """
    dy, dx = direction
    height, width = max(maps.shape[0] - dy, 0), max(maps.shape[1] - abs(dx), 0)
    top, left = cell[0], cell[1] - min(dx, 0)
    return maps[top : top + height, left : left + width]


class PairLabels:
    """The IR labels of a batch, and the kind of every pair: both cells foreground, both background, or one of each.

    A cell's labels of up to ten pathologies are the bits of one integer. A few bitwise operations then give a pair's
    kinds, and one look-up gives a sum over pathologies. `foreground` and `background` are int32 [groups, h, w, B].
    """

    def __init__(self, labels: torch.Tensor, radius: int) -> None:
        """Pack the labels into bits.

        Args:
            labels: uint8 [B, K, h, w] of 0, 1 and 255.
            radius: in cells; two cells closer than this are a pair.
        """
        self.num_pathologies = labels.shape[1]
        self.radius = radius
        self.labels = labels
        self.foreground, self.background = _bits(labels == FOREGROUND), _bits(labels == BACKGROUND)

    def kinds(self, direction: Direction) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Find the kind of every pair of one direction, for one group of up to ten pathologies after another.

        Args:
            direction: (dy, dx) of the pairs.

        Yields:
            The group's number, and three int32 [h - dy, w - |dx|, B] of bits: bit k of an entry is set where, for
            pathology k of the group, both cells are foreground, both are background, or there is one of each.
        """
        for group, (foreground, background) in enumerate(zip(self.foreground, self.background, strict=True)):
            f1, f2 = shifted(foreground, direction, (0, 0)), shifted(foreground, direction, direction)
            b1, b2 = shifted(background, direction, (0, 0)), shifted(background, direction, direction)
            yield group, *kinds_of(f1, f2, b1, b2)

    def counts(self) -> torch.Tensor:
        """Count cells and pairs of each pathology; the counts of the shares of a batch add up to the batch's.

        Returns:
            int64 [K, 4]: foreground cells, foreground pairs, background pairs, pairs of one of each.
        """
        if self.labels.device.type != "cpu":
            return convolved_counts(self.labels, self.radius)
        histograms = torch.zeros(
            len(self.foreground), 4, 1 << LABEL_GROUP, dtype=torch.int64, device=self.foreground.device
        )
        for group, bits in enumerate(self.foreground):
            histograms[group, 0] = torch.bincount(bits.flatten(), minlength=1 << LABEL_GROUP)
        for direction in directions(self.radius):
            for group, *kinds in self.kinds(direction):
                for kind, bits in enumerate(kinds, start=1):
                    histograms[group, kind] += torch.bincount(bits.flatten(), minlength=1 << LABEL_GROUP)
        per_bit = (histograms.double() @ bit_table(histograms.device)).to(torch.int64)  # exact up to 2^53 pairs
        return per_bit.permute(0, 2, 1).reshape(-1, 4)[: self.num_pathologies].contiguous()


def kinds_of(
    f1: torch.Tensor, f2: torch.Tensor, b1: torch.Tensor, b2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the kinds of pairs from the labels of both ends, as PairLabels.kinds yields them.

    Args:
        f1: int32 of any shape, the bits of the pathologies for which the first end is foreground.
        f2: likewise for the second end.
        b1: the bits of those for which the first end is background.
        b2: likewise for the second end.
    """
    return f1 & f2, b1 & b2, (f1 & b2) | (b1 & f2)


def _bits(chosen: torch.Tensor) -> torch.Tensor:
    """Pack bool [B, K, h, w] into int32 [ceil(K / 10), h, w, B]: pathology k of a group is bit k."""
    packed = []
    for group in torch.split(chosen, LABEL_GROUP, dim=1):
        bits = torch.zeros_like(group[:, 0], dtype=torch.int32)
        for k in range(group.shape[1]):
            bits = bits + (group[:, k].to(torch.int32) << k)
        packed.append(bits.permute(1, 2, 0))
    return torch.stack(packed).contiguous()


def bit_table(device: torch.device) -> torch.Tensor:
    """Return the bits of each index from 0 to 1023, float64 [1024, 10] of 0 and 1, on `device`."""
    index = torch.arange(1 << LABEL_GROUP, device=device)
    return ((index[:, None] >> torch.arange(LABEL_GROUP, device=device)) & 1).double()


def convolved_counts(labels: torch.Tensor, radius: int) -> torch.Tensor:
    """Count as PairLabels.counts does, by convolutions: the sum over cells of a label times its neighbours' labels.

    A GPU does so in a few kernels, without a wait. All sums are integers below 2^24, which float32 and TF32 hold
    exactly; rounding undoes the errors of convolutions by Fourier or Winograd transforms.

    Args:
        labels: IR labels uint8 [B, K, h, w] of 0, 1 and 255.
        radius: in cells; two cells closer than this are a pair.

    Returns:
        int64 [K, 4], as PairLabels.counts.
    """
    images, count, height, width = labels.shape
    half = _half_disk(radius, labels.device)
    whole = half + half.flip(2, 3)
    foreground, background = (labels == FOREGROUND).float(), (labels == BACKGROUND).float()

    def pairs(first: torch.Tensor, second: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        """Count the pairs whose first end is in one map and whose second is in the other, int64 [K]."""
        flat = second.view(images * count, 1, height, width)
        neighbours = F.conv2d(flat, kernel, padding=radius - 1).round().view_as(first)
        return (first * neighbours).sum((0, 2, 3), dtype=torch.float64).to(torch.int64)

    return torch.stack(
        [
            foreground.sum((0, 2, 3), dtype=torch.float64).to(torch.int64),
            pairs(foreground, foreground, half),
            pairs(background, background, half),
            pairs(foreground, background, whole),
        ],
        dim=1,
    )


@cache
def _half_disk(radius: int, device: torch.device) -> torch.Tensor:
    """float32 [1, 1, 2 radius - 1, 2 radius - 1]: 1 at the second ends of all pairs whose first is in the middle."""
    kernel = torch.zeros(1, 1, 2 * radius - 1, 2 * radius - 1)
    for dy, dx in directions(radius):
        kernel[0, 0, radius - 1 + dy, radius - 1 + dx] = 1
    return kernel.to(device)
