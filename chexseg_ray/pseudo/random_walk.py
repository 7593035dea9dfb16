"""Propagate maps over the affinities of neighbouring cells: x T^t with T = A^beta / column sums, without a dense matrix.

A has a cell's neighbours within the radius (1 on the diagonal), so T has at most 1 + 2 x 34 entries a column at radius 5: a
block-diagonal sparse matrix over the images of a batch, applied to all pathologies at once. Many steps are a Chebyshev series:
T is similar to a symmetric matrix with eigenvalues in [-1, 1], and lambda^256 needs 84 applications for an error of 1e-7.
"""

import math
import warnings
from dataclasses import dataclass
from functools import cache

import torch

from chexseg_ray.pseudo.affinity import affinity, directions

SERIES_ERROR = 1e-7  # of lambda^t on [-1, 1]; a map that is zero but for one cell needs it for 1e-3 relative at every cell


@dataclass(frozen=True)
class WalkSettings:
    """Neighbours closer than `radius` cells, affinities to the power `beta`, `steps` steps."""

    radius: int
    beta: float
    steps: int


class Transition:
    """T of a batch of boundary maps."""

    def __init__(self, boundary: torch.Tensor, radius: int, beta: float) -> None:
        """Affinities of all neighbours.

        Args:
            boundary: float [B, h, w] in [0, 1]; 1 closes a cell.
            radius: in cells.
            beta: exponent of the affinities.
        """
        batch, height, width = boundary.shape
        maps = boundary.permute(1, 2, 0).contiguous()
        pairs = [affinity(maps, d).pow(beta).reshape(-1, batch) for d in directions(radius)]
        entries = torch.cat([torch.ones(1, batch, dtype=maps.dtype, device=maps.device), *pairs])
        starts, columns, sources = (index.to(maps.device) for index in _pattern(height, width, radius))
        values = entries.index_select(0, sources).t()
        cells = self._cells = height * width
        sums = torch.segment_reduce(values, "sum", offsets=starts.expand(batch, -1).contiguous(), axis=1)
        values = values / sums.repeat_interleave(starts.diff(), dim=1)
        blocks = torch.arange(batch, device=maps.device)[:, None]
        rows = torch.cat([(starts[:-1] + blocks * len(columns)).flatten(), torch.tensor([batch * len(columns)], device=maps.device)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            self._matrix = torch.sparse_csr_tensor(
                rows.to(torch.int32),
                (columns + blocks * cells).flatten().to(torch.int32),
                values.flatten(),
                (batch * cells, batch * cells),
                check_invariants=False,
            )

    def walk(self, maps: torch.Tensor, steps: int) -> torch.Tensor:
        """x T^steps of every map.

        Args:
            maps: float [B, K, h, w] >= 0.
            steps: as many as there are steps, or as a Chebyshev series when that needs fewer applications.

        Returns:
            float [B, K, h, w] >= 0: each value a weighted mean of the map's values; a constant map stays as it is.
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
        """T of the first image, float [h w, h w], columns adding up to 1; for comparisons on small grids."""
        cells = self._cells
        return self._matrix.to_dense()[:cells, :cells].t().contiguous()

    def _series(self, x: torch.Tensor, series: list[float]) -> torch.Tensor:
        """Sum of series[k] T_k(matrix) x, by the recursion T_k+1 = 2 matrix T_k - T_k-1."""
        before, now = x, self._matrix @ x
        out = series[0] * before + series[1] * now
        for weight in series[2:]:
            before, now = now, torch.addmm(before, self._matrix, now, beta=-1, alpha=2)
            if weight:
                out.add_(now, alpha=weight)
        return out


@cache
def _pattern(height: int, width: int, radius: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sparse rows of one grid: row starts [N + 1], columns [nnz], and each entry's place in [1, pairs of each direction]."""
    cells = torch.arange(height * width).view(height, width)
    rows, columns, sources = [cells.flatten()], [cells.flatten()], [torch.zeros(height * width, dtype=torch.int64)]
    place = 1
    for dy, dx in directions(radius):
        if height <= dy or width <= abs(dx):
            continue
        first = cells[: height - dy, max(0, -dx) : width - max(0, dx)].flatten()
        second = first + dy * width + dx
        number = torch.arange(place, place + len(first))
        rows, columns, sources = [*rows, first, second], [*columns, second, first], [*sources, number, number]
        place += len(first)
    row, column, source = torch.cat(rows), torch.cat(columns), torch.cat(sources)
    order = torch.argsort(row * height * width + column)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(row, minlength=height * width).cumsum(0)])
    return starts, column[order], source[order]


@cache
def chebyshev_series(power: int, error: float = SERIES_ERROR) -> list[float]:
    """Coefficients c_k of lambda^power = sum c_k T_k(lambda) on [-1, 1], cut where the rest adds up to less than `error`."""
    series = [0.0] * (power + 1)
    for k in range(power % 2, power + 1, 2):
        series[k] = math.comb(power, (power - k) // 2) * (1 if k == 0 else 2) / 2**power
    rest = 0.0
    while len(series) > 2 and rest + series[-1] < error:
        rest += series.pop()
    return series


def propagate(cams: torch.Tensor, boundary: torch.Tensor, settings: WalkSettings) -> torch.Tensor:
    """Random-walk propagation of CAMs within boundaries (paper appendix A.2; x = CAM (1 - B), then x T^t).

    Args:
        cams: float [B, K, h, w] >= 0.
        boundary: float [B, h, w] in [0, 1]; 1 where nothing may pass, as in the padding.
        settings: radius, beta and steps.

    Returns:
        float [B, K, h, w] >= 0.
    """
    start = cams * (1 - boundary).unsqueeze(1)
    return Transition(boundary, settings.radius, settings.beta).walk(start, settings.steps)
