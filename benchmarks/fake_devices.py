"""What every network step asks of a GPU, counted without one: launches, waits, copies, FLOPs, tensors on wrong devices.

    python benchmarks/fake_devices.py [--tiny] [STEP ...]       6 minutes on 2 cores; --tiny 1 minute

Measures one update of every training and one batch of every inference step on PyTorch's fake tensors, which have
shapes, types and devices, but no values. Inference runs on a fake `cuda`; updates run on `meta`, because autograd
asks a real driver about `cuda`. A launch is an operator that is no view; a few operators count as the kernels that
they start, and fused Adam counts as none. The roofline is a model, no measurement (60 TFLOP/s, 2.6 TB/s, at least 2.5
us a launch). Prints one line a step with its launches, FLOPs, bytes touched, roofline, host syncs and copies, then
the lines of this project that wait for the GPU or mix devices. The exit code is 1 if a step mixes devices.
"""

import argparse
import contextlib
import sys
import time
import traceback
from collections import Counter, defaultdict
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
from training_steps import (
    BATCH_SIZES,
    ORIGINAL,
    PATHOLOGIES,
    WALKS,
    Setup,
    make_step,
    random_pixels,
    segmentation_network,
)

import chexseg_ray
from chexseg_ray.data import normalisation
from chexseg_ray.data.images import content_box
from chexseg_ray.pseudo import grouped_pairs, pairs, random_walk
from chexseg_ray.pseudo.classifier import build_classifier
from chexseg_ray.pseudo.irnet import IRNet
from chexseg_ray.segmentation.inference import Segmenter
from chexseg_ray.stages.cams import CamActor
from chexseg_ray.stages.cams import Settings as CamSettings
from chexseg_ray.stages.propagation import PropagationActor
from chexseg_ray.stages.propagation import Settings as PropagationSettings

PACKAGE = Path(chexseg_ray.__file__).parent
FLOPS_PER_SECOND, BYTES_PER_SECOND, LEAST_SECONDS = 60e12, 2.6e12, 2.5e-6
_NO_VALUES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_SAME_STORAGE = {"_unsafe_view", "alias", "detach", "lift_fresh", "set_", "squeeze_", "unsqueeze_", "view"}
_NO_KERNEL = {"_local_scalar_dense", "device", *_NO_VALUES, *_SAME_STORAGE}
_COPIES = ("_copy_from", "_to_copy", "copy_", "to")
_BINCOUNT_KERNELS = 6
_WITHOUT_WAIT = "engine/devices.py"  # to_device copies from pinned memory
_WEAK_SPLIT: dict[str, Any] = {"pathologies": [str(k) for k in range(PATHOLOGIES)], "splits": ("weak",)}  # for settings


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what a GPU and its host would be asked for; a scalar that is read is 0.5, 1 or False.

    Args:
        device: the type that stands for the GPU, `cuda` or `meta`.
    """

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.launches: Counter[str] = Counter()
        self.bytes: defaultdict[str, float] = defaultdict(float)
        self.seconds: defaultdict[str, float] = defaultdict(float)  # of the roofline
        self.syncs: Counter[str] = Counter()  # by the line that waits
        self.copied: Counter[str] = Counter()  # bytes, by direction: H2D or D2H
        self.mixed: Counter[str] = Counter()  # operators that were given tensors of both devices
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator on fake tensors, and count it if a tensor is on the device."""
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
        """Read a scalar on the host: a fake one gets a value that lets the step go on."""
        if self._on_device(tensor):
            self.syncs[project_line()] += 1
        if not isinstance(tensor, FakeTensor):
            return func(*args, **kwargs)
        if tensor.dtype == torch.bool:
            return False
        return 0.5 if tensor.dtype.is_floating_point else 1

    def _count(self, func: Any, name: str, args: Any, kwargs: Any, inputs: Any, outputs: Any, out: Any) -> None:
        """Count the copies, waits, mixed devices and launches of one operator."""
        if name in _COPIES:
            source, target = (inputs[1] if name == "copy_" else inputs[0]), outputs[0]
            if source.device.type != target.device.type:
                direction = "H2D" if self._on_device(target) else "D2H"
                self.copied[direction] += source.numel() * source.element_size()
                where = project_line()
                if not where.startswith(_WITHOUT_WAIT):
                    self.syncs[f"{direction} {where}"] += 1
        elif any(not self._on_device(t) and t.dim() > 0 for t in inputs) and any(self._on_device(t) for t in inputs):
            self.mixed[f"{name} {project_line()}"] += 1
        waits = name == "nonzero"  # the number of results depends on values, as it does for indexing by a mask
        if name in ("index", "index_put", "index_put_"):
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        if waits:
            self.syncs[project_line()] += 1
        if func.is_view or name in _NO_KERNEL:
            return
        flops = 0
        if func.overloadpacket in flop_registry:
            flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        self.flops += flops
        self.launch(name, sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, *outputs)), flops)

    def launch(self, name: str, touched: float, flops: float = 0.0, kernels: int = 1) -> None:
        """Count the kernels, bytes and roofline seconds of one operator.

        Args:
            name: of the operator.
            touched: bytes that it reads and writes.
            flops: its floating-point operations.
            kernels: how many kernels it starts.
        """
        self.launches[name] += kernels
        self.bytes[name] += touched
        self.seconds[name] += max(kernels * LEAST_SECONDS, touched / BYTES_PER_SECOND, flops / FLOPS_PER_SECOND)


def project_line() -> str:
    """Return the file and line of the innermost frame of the package, or of the benchmark that calls it."""
    for frame in reversed(traceback.extract_stack()):
        where = _shown(frame)
        if where and where.partition(":")[0] != Path(__file__).name:
            return where
    return "?"


def _shown(frame: traceback.FrameSummary) -> str:
    """Return a frame of this repository as `pseudo/affinity.py:94`, and an empty text for any other frame."""
    for root in (PACKAGE, Path(__file__).parent):
        if Path(frame.filename).is_relative_to(root):
            return f"{Path(frame.filename).relative_to(root)}:{frame.lineno}"
    return ""


class _FakeCsr:
    """Stands for a CSR matrix, which fake tensors lack: checks devices, types and shapes; its products are dense."""

    def __init__(
        self, watch: Watch, rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: Any
    ) -> None:
        devices = rows.device, columns.device, values.device
        assert {device.type for device in devices} == {watch.device}, devices
        assert rows.dtype == columns.dtype == torch.int32
        assert (len(rows), len(columns)) == (shape[0] + 1, len(values))
        self.watch, self.values, self.shape = watch, values, shape

    def __matmul__(self, dense: torch.Tensor) -> torch.Tensor:
        assert (dense.device, dense.dtype) == (self.values.device, self.values.dtype)
        assert dense.shape[0] == self.shape[1]
        self.watch.launch("sparse matrix product", 8 * len(self.values) + 8 * dense.numel())
        return torch.empty_like(dense)


def _move(module: torch.nn.Module, *to: Any, memory_format: Any = None, **options: Any) -> torch.nn.Module:
    """Do what nn.Module.to does, without swapping tensors, which fake ones refuse."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        found = tensor.to(*to, **options) if to or options else tensor
        return found.contiguous(memory_format=memory_format) if memory_format and tensor.dim() == 4 else found

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                own = moved(parameter.detach())
                part._parameters[name] = torch.nn.Parameter(own, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = moved(buffer)
    return module


def _warm(device: str) -> None:
    """Make the constants of a network's input, which a training copies to its device once."""
    for name in normalisation.STATISTICS:
        normalisation.network_input(torch.empty(1, 4, 4, device=device), name)


def _no_step() -> None:
    """Do nothing, in place of an optimiser's step."""


@contextlib.contextmanager
def stand_ins(watch: Watch, pattern_length: int) -> Iterator[None]:
    """Replace, while the block runs, what fake tensors cannot do.

    That is: shapes that depend on values, CSR matrices, numpy arrays, and fused Adam on `meta`.

    Args:
        watch: counts what the replacements would ask for.
        pattern_length: what repeat_interleave returns where its length depends on values: pairs of the random walk.
    """
    bincount, addmm, adam = torch.bincount, torch.addmm, torch.optim.Adam
    repeat, to_numpy = torch.Tensor.repeat_interleave, torch.Tensor.numpy

    def fake_bincount(values: torch.Tensor, weights: Any = None, minlength: int = 0) -> torch.Tensor:
        """Return zeros of the asked length, and count the kernels and waits."""
        if not isinstance(values, FakeTensor):
            return bincount(values, weights, minlength)
        watch.syncs[project_line()] += 2  # its smallest and its largest value
        watch.launch("bincount", 3 * values.numel() * values.element_size(), kernels=_BINCOUNT_KERNELS)
        return torch.zeros(minlength, dtype=torch.int64, device=values.device)

    def fake_repeat(values: torch.Tensor, repeats: Any, dim: Any = None, output_size: Any = None) -> torch.Tensor:
        """Repeat to the known length, and count the wait for it."""
        if isinstance(values, FakeTensor) and output_size is None:
            watch.syncs[project_line()] += 1
            output_size = pattern_length
        return repeat(values, repeats, dim=dim, output_size=output_size)

    def fake_numpy(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        """Return zeros of the tensor's shape and type; refuse a tensor on the device, as numpy does."""
        if not isinstance(tensor, FakeTensor):
            return to_numpy(tensor, *arguments, **options)
        assert tensor.device.type == "cpu", f"numpy of a tensor on {tensor.device}"
        return np.zeros(tuple(tensor.shape), dtype=str(tensor.dtype).split(".")[-1])

    def fake_csr(rows: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, shape: Any, **_: Any) -> _FakeCsr:
        return _FakeCsr(watch, rows, columns, values, shape)

    def fake_addmm(added: torch.Tensor, matrix: Any, dense: torch.Tensor, **options: Any) -> torch.Tensor:
        return matrix @ dense if isinstance(matrix, _FakeCsr) else addmm(added, matrix, dense, **options)

    def unfused_adam(parameters: Any, **options: Any) -> Any:
        optimiser = adam(parameters, **{**options, "fused": False, "foreach": False})
        optimiser.step = _no_step  # type: ignore[method-assign, assignment]
        optimiser.param_groups[0]["fused"] = True  # as updates ask
        return optimiser

    for cached in (normalisation._constants, grouped_pairs.groups_of, pairs._half_disk, random_walk._pattern_on):
        cached.cache_clear()  # of tensors of another fake mode
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
    """Count one update of a training on `meta`.

    Args:
        name: one of training_steps.BATCH_SIZES.
        setup: sizes; its device must be `meta`.
    """
    watch = Watch("meta")
    with stand_ins(watch, 0), FakeTensorMode(allow_non_fake_inputs=True):
        _, update = make_step(name, setup)
        _warm("meta")
        if name.startswith("irnet"):
            grouped_pairs.groups_of(setup.radius, setup.size // 4, setup.size // 4, setup.device)
            pairs._half_disk(setup.radius, setup.device)
        with watch:
            update(0)
    return watch


def count_inference(make: Callable[[torch.device, int], Callable[[], object]], size: int, walk: str = "") -> Watch:
    """Count one batch of an inference step on a fake `cuda`.

    Args:
        make: makes the step for a device and a size.
        size: pixels of a side.
        walk: the random walk of WALKS that the step uses; empty if it uses none.
    """
    watch = Watch("cuda")
    length = len(random_walk._pattern(size // 4, size // 4, WALKS[walk].radius)[1]) if walk else 0
    with stand_ins(watch, length), FakeTensorMode(allow_non_fake_inputs=True):
        step = make(torch.device("cuda"), size)
        _warm("cuda")
        with watch:
            step()
    return watch


def cams(device: torch.device, size: int) -> Callable[[], object]:
    """Make the CAM actor's work on 64 images."""
    actor = CamActor.__new__(CamActor)
    actor._settings = CamSettings(variant="post_relu", fine_grid=False, batch_size=64, **_WEAK_SPLIT)
    actor._facts, actor._device = {"normalisation": "imagenet"}, device
    actor._model = build_classifier("densenet121", PATHOLOGIES, "ignore").to(device).eval()
    pixels = random_pixels(np.random.default_rng(0), 64, size)
    return lambda: actor.map(pixels)


def propagation(walk: str, instance_wise: bool) -> Callable[[torch.device, int], Callable[[], object]]:
    """Make the propagation actor's work on 16 images (2 images if it is instance-wise), as a function of the device."""
    images = 2 if instance_wise else 16

    def make(device: torch.device, size: int) -> Callable[[], object]:
        """Make the actor without its files; its weights are random."""
        with unset_fake_temporarily():
            random_walk._pattern(size // 4, size // 4, WALKS[walk].radius)  # cached, and made of real numbers
        actor = PropagationActor.__new__(PropagationActor)
        inference = {"flip_average": True, "instance_wise": instance_wise, "foreground": 0.3}
        settings = {"random_walk": asdict(WALKS[walk]), "batch_size": images, **inference, **_WEAK_SPLIT}
        actor._settings = PropagationSettings(**settings)
        actor._facts, actor._device = {"normalisation": "imagenet", "size": size}, device
        actor._model = IRNet(instance_wise).to(device).eval()
        rng = np.random.default_rng(0)
        pixels = random_pixels(rng, images, size)
        maps = rng.random((images, PATHOLOGIES, size // 32, size // 32)).astype(np.float16)
        boxes = [content_box(*ORIGINAL, size)] * images
        return lambda: actor.map(pixels, maps, boxes)

    return make


def prediction(device: torch.device, size: int) -> Callable[[], object]:
    """Make the segmenter's work on 8 images."""
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
    """Count a step, given by its name in STEPS, at the paper's sizes or at those of --tiny."""
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
    text = f"{launches} launches, {watch.flops / 1e9:.0f} GFLOP, {touched / 1e9:.2f} GB touched"
    text += f", roofline {1e3 * sum(watch.seconds.values()):.2f} ms, {sum(watch.syncs.values())} syncs"
    copied = ", ".join(f"{direction} {number / 1e6:.2f} MB" for direction, number in sorted(watch.copied.items()))
    print(f"{name}: {text}, copies {copied or 'none'}  ({seconds:.0f} s)", flush=True)
    for title, counts in (("waits", watch.syncs), ("mixes devices", watch.mixed)):
        for where, number in counts.most_common(8):
            print(f"    {title} {number} times at {where}", flush=True)


def main() -> int:
    """Count the steps that were asked for, and return 1 if one of them mixes devices."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
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
        except (RuntimeError, AssertionError, TypeError) as error:  # so PyTorch and the stand-ins refuse mixed devices
            frames = [_shown(frame) for frame in reversed(traceback.extract_tb(error.__traceback__))]
            where = next((frame for frame in frames if frame), "?")
            print(f"{name}: REFUSED at {where}: {' '.join(str(error).split())[:300]}", flush=True)
            wrong += 1
            continue
        report(name, watch, time.perf_counter() - start)
        wrong += bool(watch.mixed)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
