"""Propagation of 10 pathologies on an 80x80 grid: the sparse walk against the dense matrix, both in one run.

    python benchmarks/random_walk.py [threads]

The dense method is the released code's: T as a 6400 x 6400 matrix, squared log2(steps) times, then one product. As a stricter
comparison the dense matrix is also applied step by step. Both get T for nothing; the sparse side's time has its construction.
"""

import sys
import time

import torch
from machine import describe

from chexseg_ray.config import RANDOM_WALKS
from chexseg_ray.pseudo.random_walk import Transition, WalkSettings, propagate

GRID, PATHOLOGIES, REPEATS = 80, 10, 5


def main() -> None:
    """Print one line a preset."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    print(describe())
    torch.manual_seed(0)
    boundary, cams = torch.rand(1, GRID, GRID), torch.rand(1, PATHOLOGIES, GRID, GRID)
    for name, walk in RANDOM_WALKS.items():
        settings = WalkSettings(**walk.model_dump())
        propagate(cams, boundary, settings)  # warm: the grid's pattern is made once
        times = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            found = propagate(cams, boundary, settings)
            times.append(time.perf_counter() - start)
        sparse = sorted(times)[REPEATS // 2]
        power, stepwise, expected = dense(boundary, cams, settings)
        error = ((found.reshape(PATHOLOGIES, -1) - expected).abs() / expected).max()
        print(
            f"{name}: radius {settings.radius}, beta {settings.beta:g}, {settings.steps} steps: sparse {1000 * sparse:.1f} ms, "
            f"dense power {power:.1f} s, {power / sparse:.0f} times; dense step by step {stepwise:.2f} s, {stepwise / sparse:.0f} times; "
            f"largest relative difference {error:.1e}"
        )


def dense(boundary: torch.Tensor, cams: torch.Tensor, settings: WalkSettings) -> tuple[float, float, torch.Tensor]:
    """Seconds of the matrix power and of step-by-step products with the dense matrix, and the result [K, N]."""
    matrix = Transition(boundary, settings.radius, settings.beta).dense()
    maps = (cams * (1 - boundary)).reshape(PATHOLOGIES, -1)
    start = time.perf_counter()
    power = matrix
    for _ in range(settings.steps.bit_length() - 1):
        power = power @ power
    expected = maps @ power
    middle = time.perf_counter()
    stepped = maps
    for _ in range(settings.steps):
        stepped = stepped @ matrix
    return middle - start, time.perf_counter() - middle, expected


if __name__ == "__main__":
    main()
