"""Speed of each training in other ways of computing: gpu.py's parts `variants` and `graphs`, not a script.

The updates are those of the project, with bfloat16, with the weights' other memory format, and as CUDA graphs. gpu.py
prints the numbers.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from training_steps import make_step

TRAININGS = ("segmentation", "classifier densenet121", "classifier resnet18", "moco")
VARIANTS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32 channels_last": {"channels_last": True},
    "bf16": {"precision": "bf16"},
    "graph, float32": {"graph": True},
    "graph, float32 channels_last": {"graph": True, "channels_last": True},
    "graph, bf16": {"graph": True, "precision": "bf16"},
}


def measure_variants(bench: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure the updates per second of each training in each way.

    Args:
        bench: gpu.py's Bench.

    Yields:
        The training and the way, and its numbers, or {"refused": the reason} where this torch or GPU refuses it.
    """
    for training in TRAININGS:
        for name, changes in VARIANTS.items():
            if changes.get("graph") and not bench.on_gpu:
                continue
            try:
                _, update = make_step(training, bench.setup(training, **changes))
                numbers = count()
                ms = bench.running_ms(lambda update=update, numbers=numbers: update(next(numbers)))
                peak = bench.peak_gb(lambda update=update, numbers=numbers: update(next(numbers)))
                yield f"{training}, {name}", {"updates_per_s": 1e3 / ms, "ms": ms, "peak_GB": peak}
            except RuntimeError as error:
                yield f"{training}, {name}", {"refused": str(error).splitlines()[0][:160]}


def compare_graphs(bench: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Compare the weights after updates as CUDA graphs with those after the same updates without.

    PyTorch's deterministic algorithms are on. Between the updates a learning rate changes, after which the graph is
    captured anew.

    Args:
        bench: gpu.py's Bench; does nothing without a GPU.

    Yields:
        The training, whether all weights are the same bytes, and the largest difference.
    """
    if not bench.on_gpu:
        return
    torch.use_deterministic_algorithms(True)
    try:
        for training in TRAININGS:
            for precision in ("float32", "bf16"):
                ends = []
                for graph in (False, True):
                    size = {"size": 64 if bench.tiny else 160, "batch_size": 4}
                    model, update = make_step(training, bench.setup(training, graph=graph, precision=precision, **size))
                    for number in range(8):
                        losses = update(number)
                    ends.append(torch.cat([*(p.detach().flatten() for p in model.parameters()), losses.reshape(-1)]))
                same, largest = bool(torch.equal(*ends)), float((ends[0] - ends[1]).abs().max())
                yield f"{training}, {precision}", {"same": same, "largest": largest}
    finally:
        torch.use_deterministic_algorithms(False)
