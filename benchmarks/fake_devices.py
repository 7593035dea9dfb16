"""Every network step on a pretended GPU: device mismatches, host syncs, copies, kernel launches, FLOPs, bytes. Needs no GPU, does no arithmetic.

    python benchmarks/fake_devices.py [--tiny] [STEP ...]       6 minutes on 2 cores; --tiny 1 minute

Tensors are PyTorch's fake ones: shapes, types and devices without values. Inference runs on a fake `cuda`; updates run on `meta`, as autograd
asks a real driver about `cuda`. Launches are operators that are no views, a few operators counted as the kernels that they start; fused Adam
counts as none. The roofline is a model (60 TFLOP/s, 2.6 TB/s, at least 2.5 us a launch), no measurement. A step with a mismatch prints the line
of this project that made it, and the exit code is 1.
"""

import argparse
import contextlib
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from training_steps import BATCH_SIZES, ORIGINAL, PATHOLOGIES, WALKS, Setup, make_step, random_pixels, segmentation_network

import chexseg_ray
from chexseg_ray.data.images import content_box
from chexseg_ray.pseudo import random_walk
from chexseg_ray.pseudo.classifier import build_classifier
from chexseg_ray.pseudo.irnet import IRNet
from chexseg_ray.segmentation.inference import Segmenter
from chexseg_ray.stages.cams import CamActor
from chexseg_ray.stages.propagation import PropagationActor

PACKAGE = Path(chexseg_ray.__file__).parent
FLOPS_PER_SECOND, BYTES_PER_SECOND, LEAST_SECONDS = 60e12, 2.6e12, 2.5e-6
_NO_KERNEL = {
    "_local_scalar_dense", "_unsafe_view", "alias", "detach", "device", "empty", "empty_like", "empty_strided", "lift_fresh",
    "new_empty", "new_empty_strided", "set_", "squeeze_", "unsqueeze_", "view",
}  # fmt: skip
_COPIES = ("_copy_from", "_to_copy", "copy_", "to")
_BINCOUNT_KERNELS = 6


class Watch(TorchDispatchMode):
    """Counts what a GPU and its host would be asked for; a scalar that is read is 0.5, 1 or False."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()  # by the line that waits
        self.copied: Counter[str] = Counter()  # bytes, by direction: H2D or D2H
        self.mixed: Counter[str] = Counter()  # operators that were given tensors of both devices
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name == "_local_scalar_dense":
            return self._scalar(func, inputs[0], args, kwargs)
        if name == "_assert_async":
            return None
        out = func(*args, **kwargs)
        outputs = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        if any(self._on_device(tensor) for tensor in (*inputs, *outputs)):
            self._count(func, name, args, kwargs, inputs, outputs, out)
        return out

    def _on_device(self, tensor: torch.Tensor) -> bool:
        return tensor.device.type == self.device

    def _scalar(self, func: Any, tensor: torch.Tensor, args: Any, kwargs: Any) -> Any:
        if self._on_device(tensor):
            self.syncs[project_line()] += 1
        if not isinstance(tensor, FakeTensor):
            return func(*args, **kwargs)
        if tensor.dtype == torch.bool:
            return False
        return 0.5 if tensor.dtype.is_floating_point else 1

    def _count(self, func: Any, name: str, args: Any, kwargs: Any, inputs: Any, outputs: Any, out: Any) -> None:
        if name in _COPIES:
            source, target = (inputs[1] if name == "copy_" else inputs[0]), outputs[0]
            if source.device.type != target.device.type:
                direction = "H2D" if self._on_device(target) else "D2H"
                self.copied[direction] += source.numel() * source.element_size()
                self.syncs[f"{direction} {project_line()}"] += 1
        elif any(not self._on_device(t) and t.dim() > 0 for t in inputs) and any(self._on_device(t) for t in inputs):
            self.mixed[f"{name} {project_line()}"] += 1
        by_mask = name in ("index", "index_put", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name == "nonzero" or by_mask:
            self.syncs[project_line()] += 1
        if func.is_view or name in _NO_KERNEL:
            return
        flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out) if func.overloadpacket in flop_registry else 0
        self.flops += flops
        self.launch(name, sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs)), flops)

    def launch(self, name: str, touched: float, flops: float = 0.0, kernels: int = 1) -> None:
        """Count kernels of one operator that touches some bytes."""
        self.launches[name] += kernels
        self.bytes[name] += touched
        self.seconds[name] += max(kernels * LEAST_SECONDS, touched / BYTES_PER_SECOND, flops / FLOPS_PER_SECOND)


def project_line() -> str:
    """File and line of the innermost frame of the package, or of the benchmark that calls it."""
    for frame in reversed(traceback.extract_stack()):
        where = _shown(frame)
        if where and where.partition(":")[0] != Path(__file__).name:
            return where
    return "?"


def _shown(frame: traceback.FrameSummary) -> str:
    """A frame of this repository as `pseudo/affinity.py:94`; empty for others."""
    for root in (PACKAGE, Path(__file__).parent):
        if Path(frame.filename).is_relative_to(root):
            return f"{Path(frame.filename).relative_to(root)}:{frame.lineno}"
    return ""


class _FakeCsr:
    """Fake tensors know no CSR: the same checks of device, type and shape, and dense results."""

    def __init__(self, watch: Watch, rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: Any) -> None:
        assert {tensor.device.type for tensor in (rows, columns, values)} == {watch.device}, (rows.device, columns.device, values.device)
        assert rows.dtype == columns.dtype == torch.int32
        assert (len(rows), len(columns)) == (shape[0] + 1, len(values))
        self.watch, self.values, self.shape = watch, values, shape

    def __matmul__(self, dense: torch.Tensor) -> torch.Tensor:
        assert (dense.device, dense.dtype) == (self.values.device, self.values.dtype)
        assert dense.shape[0] == self.shape[1]
        self.watch.launch("sparse matrix product", 8 * len(self.values) + 8 * dense.numel())
        return torch.empty_like(dense)


def _move(module: torch.nn.Module, device: Any, *_: Any) -> torch.nn.Module:
    """nn.Module.to without swapping tensors, which fake ones refuse."""
    for own in module.modules():
        for name, parameter in own._parameters.items():
            if parameter is not None:
                own._parameters[name] = torch.nn.Parameter(parameter.detach().to(device), requires_grad=parameter.requires_grad)
        for name, buffer in own._buffers.items():
            if buffer is not None:
                own._buffers[name] = buffer.to(device)
    return module


@contextlib.contextmanager
def stand_ins(watch: Watch, pattern_length: int) -> Iterator[None]:
    """What fake tensors cannot do, done in their place: shapes that depend on values, CSR matrices, numpy arrays, fused Adam on `meta`."""
    bincount, repeat, numpy_of, addmm, adam = (
        torch.bincount, torch.Tensor.repeat_interleave, torch.Tensor.numpy, torch.addmm, torch.optim.Adam,
    )  # fmt: skip

    def fake_bincount(values: torch.Tensor, weights: Any = None, minlength: int = 0) -> torch.Tensor:
        if not isinstance(values, FakeTensor):
            return bincount(values, weights, minlength)
        watch.syncs[project_line()] += 2  # its smallest and its largest value
        watch.launch("bincount", 3 * values.numel() * values.element_size(), kernels=_BINCOUNT_KERNELS)
        return torch.zeros(minlength, dtype=torch.int64, device=values.device)

    def fake_repeat(values: torch.Tensor, repeats: Any, dim: Any = None, output_size: Any = None) -> torch.Tensor:
        if isinstance(values, FakeTensor) and output_size is None:
            watch.syncs[project_line()] += 1
            output_size = pattern_length
        return repeat(values, repeats, dim=dim, output_size=output_size)

    def fake_numpy(tensor: torch.Tensor, *arguments: Any, **more: Any) -> Any:
        if not isinstance(tensor, FakeTensor):
            return numpy_of(tensor, *arguments, **more)
        assert tensor.device.type == "cpu", f"numpy of a tensor on {tensor.device}"
        return np.zeros(tuple(tensor.shape), dtype=str(tensor.dtype).split(".")[-1])

    def fake_csr(rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: Any, **_: Any) -> _FakeCsr:
        return _FakeCsr(watch, rows, columns, values, shape)

    def fake_addmm(added: torch.Tensor, matrix: Any, dense: torch.Tensor, **more: Any) -> torch.Tensor:
        return matrix @ dense if isinstance(matrix, _FakeCsr) else addmm(added, matrix, dense, **more)

    def unfused_adam(parameters: Any, **options: Any) -> Any:
        optimiser = adam(parameters, **{**options, "fused": False, "foreach": False})
        optimiser.step = lambda: None
        return optimiser

    with contextlib.ExitStack() as stack:
        patches = [
            (torch, "bincount", fake_bincount),
            (torch, "sparse_csr_tensor", fake_csr),
            (torch, "addmm", fake_addmm),
            (torch.Tensor, "repeat_interleave", fake_repeat),
            (torch.Tensor, "numpy", fake_numpy),
            (torch.nn.Module, "to", _move),
        ]
        if watch.device == "meta":
            patches.append((torch.optim, "Adam", unfused_adam))
        for owner, name, replacement in patches:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def count_update(name: str, setup: Setup) -> Watch:
    """One update of a training on `meta`.

    Args:
        name: one of training_steps.BATCH_SIZES.
        setup: sizes; its device must be `meta`.
    """
    watch = Watch("meta")
    with stand_ins(watch, 0), FakeTensorMode(allow_non_fake_inputs=True):
        _, update = make_step(name, setup)
        with watch:
            update(0)
    return watch


def count_inference(make: Callable[[torch.device, int], Callable[[], object]], size: int, walk: str = "") -> Watch:
    """One batch of an inference step on a fake `cuda`.

    Args:
        make: makes the step for a device and a size.
        size: pixels of a side.
        walk: the random walk of WALKS that the step uses, if it uses one.
    """
    watch = Watch("cuda")
    length = len(random_walk._pattern(size // 4, size // 4, WALKS[walk].radius)[1]) if walk else 0
    with stand_ins(watch, length), FakeTensorMode(allow_non_fake_inputs=True):
        step = make(torch.device("cuda"), size)
        with watch:
            step()
    return watch


def cams(device: torch.device, size: int) -> Callable[[], object]:
    """The CAM actor's map of 64 images."""
    actor = CamActor.__new__(CamActor)
    actor._config = {"pathologies": list(range(PATHOLOGIES)), "batch_size": 64, "variant": "post_relu", "fine_grid": False}
    actor._facts, actor._device = {"normalisation": "imagenet"}, device
    actor._model = build_classifier("densenet121", PATHOLOGIES, "ignore").to(device).eval()
    pixels = random_pixels(np.random.default_rng(0), 64, size)
    return lambda: actor.map(pixels)


def propagation(walk: str, instance_wise: bool) -> Callable[[torch.device, int], Callable[[], object]]:
    """The propagation actor's map of 16 images (2 instance-wise)."""
    images = 2 if instance_wise else 16

    def make(device: torch.device, size: int) -> Callable[[], object]:
        with unset_fake_temporarily():
            random_walk._pattern(size // 4, size // 4, WALKS[walk].radius)  # cached: made of real numbers
        actor = PropagationActor.__new__(PropagationActor)
        actor._config = {
            "pathologies": list(range(PATHOLOGIES)), "batch_size": images, "flip_average": True, "instance_wise": instance_wise,
            "foreground": 0.3, "random_walk": asdict(WALKS[walk]),
        }  # fmt: skip
        actor._facts, actor._device = {"normalisation": "imagenet", "size": size}, device
        actor._model = IRNet(instance_wise).to(device).eval()
        rng = np.random.default_rng(0)
        pixels = random_pixels(rng, images, size)
        maps = rng.random((images, PATHOLOGIES, size // 32, size // 32)).astype(np.float16)
        boxes = [content_box(*ORIGINAL, size)] * images
        return lambda: actor.map(pixels, maps, boxes)

    return make


def prediction(device: torch.device, size: int) -> Callable[[], object]:
    """The segmenter's masks of 8 images."""
    names, cuts = tuple(map(str, range(PATHOLOGIES))), np.full(PATHOLOGIES, 0.5, np.float32)
    segmenter = Segmenter(segmentation_network().to(device).eval(), names, cuts, "imagenet", size, device)
    pixels = random_pixels(np.random.default_rng(0), 8, size)
    return lambda: list(segmenter.letterboxed(pixels, [(400, 500)] * 8))


INFERENCE: dict[str, tuple[Callable[[torch.device, int], Callable[[], object]], str]] = {
    "cams": (cams, ""),
    "propagation chexseg": (propagation("chexseg", False), "chexseg"),
    "propagation irn": (propagation("irn", False), "irn"),
    "propagation instance": (propagation("chexseg", True), "chexseg"),
    "prediction": (prediction, ""),
}


def count(name: str, tiny: bool) -> Watch:
    """The counts of a step by its name, at the paper's sizes or at --tiny's."""
    if name in INFERENCE:
        make, walk = INFERENCE[name]
        return count_inference(make, 64 if tiny else 320, walk)
    kind, _, replicas = name.partition(" R=")
    sizes: dict[str, Any] = {"size": 320, "batch_size": BATCH_SIZES[kind]}
    if tiny:
        sizes = {"size": 64, "batch_size": 4, "radius": 4, "queue_size": 16}
    return count_update(kind, Setup(device=torch.device("meta"), num_replicas=int(replicas or 1), **sizes))


STEPS = (*BATCH_SIZES, "segmentation R=2", "moco R=2", *INFERENCE)


def report(name: str, watch: Watch, seconds: float) -> None:
    """Print a step's counts, and where it waits and mixes devices."""
    launches, touched = sum(watch.launches.values()), sum(watch.bytes.values())
    model = 1e3 * sum(watch.seconds.values())
    text = f"{launches} launches, {watch.flops / 1e9:.0f} GFLOP, {touched / 1e9:.2f} GB touched, roofline {model:.2f} ms"
    copied = ", ".join(f"{direction} {number / 1e6:.2f} MB" for direction, number in sorted(watch.copied.items()))
    print(f"{name}: {text}, {sum(watch.syncs.values())} syncs, copies {copied or 'none'}  ({seconds:.0f} s)", flush=True)
    for title, counts in (("waits", watch.syncs), ("mixes devices", watch.mixed)):
        for where, number in counts.most_common(8):
            print(f"    {title} {number} times at {where}", flush=True)


def main() -> int:
    """Count the steps that were asked for; 1 when one of them mixes devices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}; default: all")
    parser.add_argument("--tiny", action="store_true", help="64 px and small batches")
    asked = parser.parse_args()
    unknown = set(asked.steps) - set(STEPS)
    if unknown:
        parser.error(f"no step {sorted(unknown)[0]!r}: name some of {', '.join(STEPS)}")
    wrong = 0
    for name in asked.steps or STEPS:
        start = time.perf_counter()
        try:
            watch = count(name, asked.tiny)
        except (RuntimeError, AssertionError, TypeError) as error:  # how PyTorch and the stand-ins refuse tensors of two devices
            where = next(filter(None, map(_shown, reversed(traceback.extract_tb(error.__traceback__)))), "?")
            print(f"{name}: REFUSED at {where}: {' '.join(str(error).split())[:300]}", flush=True)
            wrong += 1
            continue
        report(name, watch, time.perf_counter() - start)
        wrong += bool(watch.mixed)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
