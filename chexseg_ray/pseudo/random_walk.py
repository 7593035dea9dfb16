"""Propagate maps over the affinities of neighbouring cells: x T^t with T = A^beta / column sums, T never dense.

A holds the affinities of cells closer than the radius, and 1 on the diagonal, so a column of T has at most 1 + 2 x 34
entries at radius 5. T is stored as one block-diagonal sparse matrix over the images of a batch and applied to all
pathologies at once. Many steps are computed as a Chebyshev series: T is similar to a symmetric matrix with eigenvalues
in [-1, 1], and lambda^256 needs 84 applications of T for an error of 1e-7.
"""

import math
import warnings
from dataclasses import dataclass
from functools import cache

import torch

from chexseg_ray.pseudo.affinity import affinity
from chexseg_ray.pseudo.pairs import directions

# The error of lambda^t on [-1, 1]. A map that is zero except in one cell needs it to be right to 1e-3 in every cell.
SERIES_ERROR = 1e-7


@dataclass(frozen=True)
class WalkSettings:
    """The settings of a random walk.

    Args:
        radius: in cells; two cells closer than this are neighbours.
        beta: the exponent of the affinities.
        steps: t, the number of steps.
    """

    radius: int
    beta: float
    steps: int


class Transition:
    """The transition matrices T of a batch of boundary maps."""

    def __init__(self, boundary: torch.Tensor, radius: int, beta: float) -> None:
        """Compute T from the affinities of all neighbours.

        Args:
            boundary: float [B, h, w] in [0, 1]; 1 closes a cell.
            radius: in cells; two cells closer than this are neighbours.
            beta: the exponent of the affinities.
        """
        batch, height, width = boundary.shape
        cells = self._cells = height * width
        maps = boundary.permute(1, 2, 0).contiguous()
        pairs = [affinity(maps, direction).pow(beta).reshape(-1, batch) for direction in directions(radius)]
        entries = torch.cat([torch.ones(1, batch, dtype=maps.dtype, device=maps.device), *pairs])
        starts, columns, sources = _pattern_on(height, width, radius, maps.device)
        values = entries.index_select(0, sources).t()
        sums = torch.segment_reduce(values, "sum", offsets=starts.expand(batch, -1).contiguous(), axis=1)
        values = values / sums.repeat_interleave(starts.diff(), dim=1, output_size=len(columns))
        blocks = torch.arange(batch, device=maps.device)[:, None]
        end = torch.full([1], batch * len(columns), device=maps.device)
        rows = torch.cat([(starts[:-1] + blocks * len(columns)).flatten(), end])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
            self._matrix = torch.sparse_csr_tensor(
                rows.to(torch.int32),
                (columns + blocks * cells).flatten().to(torch.int32),
                values.flatten(),
                (batch * cells, batch * cells),
                check_invariants=False,
            )

    def walk(self, maps: torch.Tensor, steps: int) -> torch.Tensor:
        """Compute x T^steps for every map x.

        Args:
            maps: float [B, K, h, w] >= 0.
            steps: the number of steps; T is applied once per step, or fewer times as a Chebyshev series.

        Returns:
            float [B, K, h, w] >= 0: each value is a weighted mean of the map's values; a constant map stays unchanged.
        """
        batch, count, height, width = maps.shape
        x = maps.permute(0, 2, 3, 1).reshape(-1, count).contiguous()
        series = chebyshev_series(steps)
        if len(series) - 1 < steps:
            x = self._series(x, series).clamp_(min=0)
        else:
            for _ in range(steps):
                x = self._matrix @ x
        return x.view(batch, height, width, count).permute(0, 3, 1, 2).contiguous()

    def dense(self) -> torch.Tensor:
        """T of the first image, float [h w, h w], whose columns add up to 1; for comparisons on small grids."""
        cells = self._cells
        return self._matrix.to_dense()[:cells, :cells].t().contiguous()

    def _series(self, x: torch.Tensor, series: list[float]) -> torch.Tensor:
        """The sum of series[k] T_k(matrix) x, T_k Chebyshev's polynomials, by T_k+1 = 2 matrix T_k - T_k-1."""
        before, now = x, self._matrix @ x
        out = series[0] * before + series[1] * now
        for weight in series[2:]:
            before, now = now, torch.addmm(before, self._matrix, now, beta=-1, alpha=2)
            if weight:
                out.add_(now, alpha=weight)
        return out


@cache
def _pattern_on(height: int, width: int, radius: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The pattern on a device, copied there once."""
    return tuple(index.to(device) for index in _pattern(height, width, radius))


@cache
def _pattern(height: int, width: int, radius: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sparse pattern of T on one grid of N = height x width cells.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        radius: in cells; two cells closer than this are neighbours.

    Returns:
        int64 row starts [N + 1], columns [nnz] and sources [nnz]. An entry's source is the index of its value: 0 is the
        1 on the diagonal, then come the pairs of one direction after another.
    """
    cells = torch.arange(height * width).view(height, width)
    rows, columns, sources = [cells.flatten()], [cells.flatten()], [torch.zeros(height * width, dtype=torch.int64)]
    next_source = 1
    for dy, dx in directions(radius):
        if height <= dy or width <= abs(dx):
            continue
        first = cells[: height - dy, max(0, -dx) : width - max(0, dx)].flatten()
        second = first + dy * width + dx
        source = torch.arange(next_source, next_source + len(first))
        rows += [first, second]
        columns += [second, first]
        sources += [source, source]
        next_source += len(first)
    row, column = torch.cat(rows), torch.cat(columns)
    order = torch.argsort(row * height * width + column)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(row, minlength=height * width).cumsum(0)])
    return starts, column[order], torch.cat(sources)[order]


@cache
def chebyshev_series(power: int, error: float = SERIES_ERROR) -> list[float]:
    """The Chebyshev series of a power: lambda^power = sum of c_k T_k(lambda) on [-1, 1].

    Args:
        power: the exponent, at least 0.
        error: the series is cut where the coefficients that are left out add up to less than this.

    Returns:
        The coefficients c_0, c_1, ..., at least two unless the power is 0.
    """
    series = [0.0] * (power + 1)
    for k in range(power % 2, power + 1, 2):
        series[k] = math.comb(power, (power - k) // 2) * (1 if k == 0 else 2) / 2**power
    rest = 0.0
    while len(series) > 2 and rest + series[-1] < error:
        rest += series.pop()
    return series


def propagate(cams: torch.Tensor, boundary: torch.Tensor, settings: WalkSettings) -> torch.Tensor:
    """Propagate CAMs by a random walk within boundaries (paper appendix A.2): x T^t with x = CAM (1 - boundary).

    Args:
        cams: float [B, K, h, w] >= 0.
        boundary: float [B, h, w] in [0, 1]; 1 where nothing may pass, as in the padding.
        settings: radius, beta and steps of the walk.

    Returns:
        float [B, K, h, w] >= 0, the propagated maps.
    """
    start = cams * (1 - boundary).unsqueeze(1)
    return Transition(boundary, settings.radius, settings.beta).walk(start, settings.steps)
