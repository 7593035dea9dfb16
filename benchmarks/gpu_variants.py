"""The segmentation update on a batch that lies on the device, with one change after another: what gpu.py's part `variants` measures."""

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
    """What differs from the update as the project runs it.

    Args:
        late: do not read the loss on the host before the backward pass.
        benchmark: let cuDNN choose its algorithms by trying.
        channels_last: weights and inputs in that memory format.
        bf16: autocast of the network; the loss stays in float32.
        graph: the whole update as one CUDA graph.
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
    """Name and numbers of each variant; one that this torch or GPU refuses says why.

    Args:
        bench: gpu.py's Bench.
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
    device = pixels.device
    torch.manual_seed(0)
    model = segmentation_network().to(device).train()
    if variant.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True, capturable=variant.graph)
    # constants on the device: a CUDA graph cannot capture torch.tensor(..., device="cuda")
    mean, std = torch.tensor(0.502, device=device), torch.tensor(0.085585, device=device)

    def inputs() -> torch.Tensor:
        if variant.graph:
            x = ((pixels.unsqueeze(1).float() / 255.0 - mean) / std).expand(-1, 3, -1, -1)
        else:
            x = network_input(pixels, "chexpert")
        return x.contiguous(memory_format=torch.channels_last if variant.channels_last else torch.contiguous_format)

    def update() -> torch.Tensor:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=variant.bf16):
            logits = model(inputs())
        loss = class_average_dice_loss(logits.float(), masks)
        if not variant.late and not np.isfinite(float(loss.detach())):
            raise RuntimeError("the loss is not finite")
        loss.backward()
        optimiser.step()
        return loss.detach()

    return _captured(update) if variant.graph else update


def _captured(update: Callable[[], object]) -> Callable[[], object]:
    """The update as a CUDA graph, after five warm-up calls on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(5):
            update()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    return graph.replay
