"""Speed of the segmentation update with one change after another: gpu.py's part `variants`, not a script.

Measures updates per second, milliseconds and peak memory of the update as the project runs it, on a batch that lies
on the device already, and of the same update with each change of VARIANTS. gpu.py prints the numbers, with the number
of kernels and their time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from training_steps import PATHOLOGIES, random_pixels, segmentation_network

from chexseg_ray.data.normalisation import network_input
from chexseg_ray.segmentation.losses import class_average_dice_loss


@dataclass(frozen=True)
class Variant:
    """How an update differs from the one that the project runs.

    Args:
        late: the host does not read the loss before the backward pass.
        benchmark: cuDNN tries its algorithms and takes the fastest.
        channels_last: weights and inputs are in that memory format.
        bf16: the network runs under autocast; the loss stays in float32.
        graph: the whole update is one CUDA graph.
    """

    late: bool = False
    benchmark: bool = False
    channels_last: bool = False
    bf16: bool = False
    graph: bool = False


VARIANTS = {
    "float32": Variant(),
    "late": Variant(late=True),
    "late benchmark": Variant(late=True, benchmark=True),
    "late channels_last": Variant(late=True, channels_last=True),
    "late bf16": Variant(late=True, bf16=True),
    "late bf16 channels_last": Variant(late=True, bf16=True, channels_last=True),
    "graph float32": Variant(late=True, graph=True),
    "graph bf16 channels_last": Variant(late=True, graph=True, bf16=True, channels_last=True),
}


def measure_variants(bench: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure each variant.

    Args:
        bench: gpu.py's Bench.

    Yields:
        The variant's name and its numbers, or {"refused": the reason} where this torch or GPU refuses it.
    """
    number = 2 if bench.tiny else 8
    pixels = torch.from_numpy(random_pixels(bench.rng, number, bench.size)).to(bench.device)
    masks = torch.from_numpy(bench.rng.random((number, PATHOLOGIES, bench.size, bench.size)) > 0.8).to(bench.device)
    for name, variant in VARIANTS.items():
        if variant.graph and not bench.on_gpu:
            continue
        torch.backends.cudnn.benchmark = variant.benchmark
        try:
            work = _make_update(variant, pixels, masks)
            ms = bench.running_ms(work)
            numbers = {"updates_per_s": 1e3 / ms, "ms": ms, "peak_GB": bench.peak_gb(work)}
            if not variant.graph:
                numbers |= bench.kernels(work)
            yield name, numbers
        except RuntimeError as error:
            yield name, {"refused": str(error).splitlines()[0][:160]}
        finally:
            torch.backends.cudnn.benchmark = False


def _make_update(variant: Variant, pixels: torch.Tensor, masks: torch.Tensor) -> Callable[[], object]:
    """Make the update of a variant on pixels uint8 [N, S, S] and masks bool [N, K, S, S], both on the device."""
    device = pixels.device
    torch.manual_seed(0)
    model = segmentation_network().to(device).train()
    if variant.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True, capturable=variant.graph)
    # network_input's constants, made here: a CUDA graph cannot capture torch.tensor(..., device="cuda")
    mean, std = torch.tensor(0.502, device=device), torch.tensor(0.085585, device=device)

    def inputs() -> torch.Tensor:
        """Return the network's input, float32 [N, 3, S, S]."""
        if variant.graph:
            x = ((pixels.unsqueeze(1).float() / 255.0 - mean) / std).expand(-1, 3, -1, -1)
        else:
            x = network_input(pixels, "chexpert")
        if variant.channels_last:
            return x.contiguous(memory_format=torch.channels_last)
        return x.contiguous()

    def update() -> torch.Tensor:
        """Run one update and return its loss."""
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=variant.bf16):
            logits = model(inputs())
        loss = class_average_dice_loss(logits.float(), masks)
        if not variant.late and not np.isfinite(float(loss.detach())):
            raise RuntimeError("the loss is not finite")
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss.detach()

    return _captured(update) if variant.graph else update


def _captured(update: Callable[[], object]) -> Callable[[], object]:
    """Capture the update as a CUDA graph, after five warm-up calls on a side stream, and return the graph's replay."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(5):
            update()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    return graph.replay
