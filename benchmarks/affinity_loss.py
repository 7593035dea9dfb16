"""Time and memory of IRNet's losses, against the forward pass of its frozen trunk.

    python benchmarks/affinity_loss.py [THREADS, default 2]

Measures one update on random inputs (80x80 cells, radius 10, batch 16, 10 pathologies). On one side are the
affinities, the losses and their gradients: first the boundary loss only, then all three losses. On the other side is
the trunk's forward pass on 16 images of 320x320 pixels. Prints the machine and one line for each choice of losses:
the seconds of both sides (the best of three), their ratio, and the losses' peak extra memory. On a GPU that is what
torch allocated; on a CPU it is the process's resident memory as Linux counts it.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe

from chexseg_ray.pseudo.affinity import irnet_losses
from chexseg_ray.pseudo.irnet import IRNet
from chexseg_ray.pseudo.pairs import PairLabels

BATCH, PATHOLOGIES, SIZE, RADIUS, REPEATS = 16, 10, 320, 10, 3


def main() -> None:
    """Measure both sides and print the lines."""
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
    one_loss = min(seconds(device, lambda: step(boundary, None, labels)) for _ in range(REPEATS))
    memory_one = peak(device) - before
    all_losses = min(seconds(device, lambda: step(boundary, field, labels)) for _ in range(REPEATS))
    memory_all = peak(device) - before
    model = IRNet(displacement=False).to(device).eval()
    images = torch.randn(BATCH, 3, SIZE, SIZE, device=device)
    model.trunk(images)
    trunk = min(seconds(device, lambda: model.trunk(images)) for _ in range(REPEATS))
    boundary_text = f"boundary loss with gradient {one_loss:.3f} s, trunk {trunk:.3f} s: {one_loss / trunk:.2f} of it"
    print(f"{boundary_text}; extra memory {memory_one / 1e6:.0f} MB")
    all_text = f"all three losses {all_losses:.3f} s: {all_losses / trunk:.2f} of the trunk"
    print(f"{all_text}; extra memory {memory_all / 1e6:.0f} MB")


def step(boundary: torch.Tensor, field: torch.Tensor | None, labels: torch.Tensor) -> None:
    """Compute the losses, from the label maps on, and their gradients."""
    losses = irnet_losses(boundary, field, PairLabels(labels, RADIUS))
    (losses.boundary + losses.foreground + losses.background).backward()  # type: ignore[no-untyped-call]


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Return the wall time of one call, in seconds."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def held(device: torch.device) -> float:
    """Return the bytes held now, and make peak() start anew from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak(device: torch.device) -> float:
    """Return the most bytes held at once since the last call of held()."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(field: str) -> float:
    """Return one of the sizes in Linux's status of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
