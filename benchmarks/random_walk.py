"""Time of the random walk: the package's sparse walk against a dense matrix.

    python benchmarks/random_walk.py [THREADS, default 2]

Measures the propagation of 10 pathologies on a grid of 80x80 cells, for each preset of irnet.random_walk. On one side
is the sparse walk, with the construction of its matrix T. On the other side is the method of the released code: T as
a dense matrix of 6400x6400, squared log2(steps) times, then one product. As a stricter comparison the dense matrix is
also applied step by step. Both dense sides are given T, whose construction does not count. Prints the machine and one
line a preset: the time of the three (the sparse walk's is the median of five), how many times slower the dense ones
are, and the largest relative difference between the sparse result and the matrix power's.
"""

import sys
import time

import torch
from machine import describe

from chexseg_ray.config.upstream import RANDOM_WALKS
from chexseg_ray.pseudo.random_walk import Transition, WalkSettings, propagate

GRID, PATHOLOGIES, REPEATS = 80, 10, 5


def main() -> None:
    """Measure all sides of each preset and print its line."""
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
            f"{name}: radius {settings.radius}, beta {settings.beta:g}, {settings.steps} steps: "
            f"sparse {1000 * sparse:.1f} ms, dense power {power:.1f} s, {power / sparse:.0f} times; "
            f"dense step by step {stepwise:.2f} s, {stepwise / sparse:.0f} times; "
            f"largest relative difference {error:.1e}"
        )


def dense(boundary: torch.Tensor, cams: torch.Tensor, settings: WalkSettings) -> tuple[float, float, torch.Tensor]:
    """Propagate with the dense matrix, both ways.

    Args:
        boundary: float32 [1, G, G], in [0, 1].
        cams: float32 [1, K, G, G].
        settings: the walk; its number of steps is a power of two.

    Returns:
        Seconds of the matrix power and of the step-by-step products, and the matrix power's result [K, G * G].
    """
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
