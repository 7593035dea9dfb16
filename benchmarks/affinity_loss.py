"""Affinities and losses of one IRNet update (80x80, radius 10, batch 16, 10 pathologies) against the frozen trunk's forward pass.

    python benchmarks/affinity_loss.py [threads]

Prints seconds of both and their ratio, and the peak extra memory of the losses (on a CPU the process's, by Linux's own count).
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe

from chexseg_ray.pseudo.affinity import PairLabels, irnet_losses
from chexseg_ray.pseudo.irnet import IRNet

BATCH, PATHOLOGIES, SIZE, RADIUS, REPEATS = 16, 10, 320, 10, 3


def main() -> None:
    """Print the two lines."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(describe())
    torch.manual_seed(0)
    grid = SIZE // 4
    labels = torch.randint(0, 3, (BATCH, PATHOLOGIES, grid, grid), device=device).to(torch.uint8)
    labels[labels == 2] = 255
    boundary = torch.rand(BATCH, grid, grid, device=device, requires_grad=True)
    field = torch.randn(BATCH, 2, grid, grid, device=device, requires_grad=True)
    step(boundary[:1], None, labels[:1])  # warm
    before = held(device)
    alone = min(seconds(device, lambda: step(boundary, None, labels)) for _ in range(REPEATS))
    memory = peak(device) - before
    both = min(seconds(device, lambda: step(boundary, field, labels)) for _ in range(REPEATS))
    memory_both = peak(device) - before
    model = IRNet(displacement=False).to(device).eval()
    images = torch.randn(BATCH, 3, SIZE, SIZE, device=device)
    model.trunk(images)
    trunk = min(seconds(device, lambda: model.trunk(images)) for _ in range(REPEATS))
    print(f"boundary loss with gradient {alone:.3f} s, trunk {trunk:.3f} s: {alone / trunk:.2f} of it; extra memory {memory / 1e6:.0f} MB")
    print(f"all three losses {both:.3f} s: {both / trunk:.2f} of the trunk; extra memory {memory_both / 1e6:.0f} MB")


def step(boundary: torch.Tensor, field: torch.Tensor | None, labels: torch.Tensor) -> None:
    """Losses from the label map on, and their gradients."""
    losses = irnet_losses(boundary, field, PairLabels(labels, RADIUS))
    (losses.boundary + losses.foreground + losses.background).backward()


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def held(device: torch.device) -> float:
    """Bytes held now; from here on peak() counts anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak(device: torch.device) -> float:
    """The most bytes held since held()."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
