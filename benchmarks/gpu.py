"""Every network step of the study on this machine's GPU: is it right, how fast is it, and where does its time go?

    python benchmarks/gpu.py [--tiny] [--out FOLDER] [--only PART ...]      4 minutes on an H100; --tiny 1 on 2 cores

Measures, part by part: the machine; the errors of each step against the CPU, where trainings run in float64 (right);
whether the same updates give the same bytes (again), also as CUDA graphs (graphs); updates per second of each training
(speed), and of each in other ways of computing (variants); where the time of an IRNet update goes (irnet); CAMs,
propagation and prediction (maps); and 1 to 8 trainings side by side (packing). Without a GPU the same code runs on
the CPU, at the sizes of --tiny. Prints one line a measurement, and writes all of them to FOLDER/gpu.json. A part that
fails prints its error, the others go on, and the exit code is then 1. Needs torch, torchvision, smp, numpy, scipy,
pandas, pyarrow, pydantic, scikit-image and Pillow, but no Ray.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_right import measure_errors
from gpu_variants import compare_graphs, measure_variants
from machine import describe
from training_steps import (
    ALONE,
    BATCH_SIZES,
    ORIGINAL,
    PATHOLOGIES,
    WALKS,
    Setup,
    irnet_sampling,
    make_step,
    random_batch,
    random_pixels,
    segmentation_network,
)

from chexseg_ray.data.images import content_box
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.evaluation.thresholds import SEGMENTATION_GRID, ScoreHistogram
from chexseg_ray.pseudo.affinity import irnet_losses
from chexseg_ray.pseudo.classifier import build_classifier
from chexseg_ray.pseudo.gradcam import grad_cam
from chexseg_ray.pseudo.irnet import IRNet, boundary_maps
from chexseg_ray.pseudo.pairs import PairLabels
from chexseg_ray.pseudo.propagation import propagate_cams
from chexseg_ray.pseudo.random_walk import Transition
from chexseg_ray.segmentation.training import predict
from chexseg_ray.stages.irnet import training_sample

_WORKER_SECONDS = 6.0  # that each process of packing() trains


class Bench:
    """The device, the sizes, and the numbers measured so far.

    Args:
        tiny: whether sizes are those of --tiny.
    """

    def __init__(self, tiny: bool) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.on_gpu = self.device.type == "cuda"
        self.tiny = tiny
        self.size = 64 if tiny else 320
        self.repeats = 2 if tiny else 30
        self.numbers: dict[str, dict[str, Any]] = {}
        self.rng = np.random.default_rng(0)

    def setup(self, name: str, **changes: Any) -> Setup:
        """Return the paper's sizes of a training step, or those of --tiny, with changes."""
        if self.tiny:
            sizes = {"size": 64, "batch_size": 2, "radius": 4, "queue_size": 8}
        else:
            sizes = {"size": 320, "batch_size": BATCH_SIZES[name]}
        return Setup(**{"device": self.device, **sizes, **changes})

    def record(self, name: str, **values: Any) -> None:
        """Print one measurement and keep it for gpu.json."""
        self.numbers[name] = values
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
        print(f"{name}: {', '.join(f'{key} {text}' for key, text in shown.items())}", flush=True)

    def synchronise(self) -> None:
        """Wait for the GPU."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def one_call_ms(self, work: Callable[[], object], repeats: int | None = None) -> float:
        """Return the median milliseconds of one call with a synchronisation before and after it."""
        self._warm(work)
        times = []
        for _ in range(repeats or self.repeats):
            self.synchronise()
            start = time.perf_counter()
            work()
            self.synchronise()
            times.append(1e3 * (time.perf_counter() - start))
        return sorted(times)[len(times) // 2]

    def running_ms(self, work: Callable[[], object], repeats: int | None = None) -> float:
        """Return the milliseconds of a call when calls follow each other, as in training, with one synchronisation."""
        self._warm(work)
        number = repeats or self.repeats
        self.synchronise()
        start = time.perf_counter()
        for _ in range(number):
            work()
        self.synchronise()
        return 1e3 * (time.perf_counter() - start) / number

    def _warm(self, work: Callable[[], object]) -> None:
        for _ in range(1 if self.tiny else 3):
            work()

    def kernels(self, work: Callable[[], object]) -> dict[str, float]:
        """Return the number of kernels of one call and their device milliseconds; empty without a GPU."""
        if not self.on_gpu:
            return {}
        from torch.profiler import ProfilerActivity, profile

        work()
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as trace:
            work()
            self.synchronise()
        cuda = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
        found = [event for event in trace.events() if event.device_type == cuda]
        return {"kernels": float(len(found)), "device_ms": sum(event.time_range.elapsed_us() for event in found) / 1e3}

    def peak_gb(self, work: Callable[[], object]) -> float:
        """Return the most GB that torch held on the GPU during one call; 0 without a GPU."""
        if not self.on_gpu:
            return 0.0
        self.synchronise()
        torch.cuda.reset_peak_memory_stats()
        work()
        self.synchronise()
        return torch.cuda.max_memory_allocated() / 1e9


def machine(bench: Bench) -> None:
    """Record what this machine is, and the ceilings of its memory and arithmetic."""
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    facts: dict[str, Any] = {"what": describe(), "cudnn": cudnn}
    if not bench.on_gpu:
        bench.record("machine", **facts)
        return
    free, total = torch.cuda.mem_get_info()
    facts |= {"cuda": torch.version.cuda, "total_GB": total / 1e9, "free_GB": free / 1e9}
    facts |= {"tf32_conv": torch.backends.cudnn.allow_tf32, "tf32_matmul": torch.backends.cuda.matmul.allow_tf32}
    bench.record("machine", **facts)
    large = torch.empty(1 << 29, dtype=torch.float32, device=bench.device)
    other = torch.empty_like(large)
    copied = 2 * large.numel() * 4
    bench.record("copy", TB_per_s=copied / bench.one_call_ms(lambda: other.copy_(large), 10) / 1e9)
    host = torch.empty(9_000_000, dtype=torch.uint8)
    pinned = torch.empty(9_000_000, dtype=torch.uint8).pin_memory()
    pageable_ms = bench.one_call_ms(lambda: host.to(bench.device))
    pinned_ms = bench.one_call_ms(lambda: pinned.to(bench.device, non_blocking=True))
    bench.record("to device, 9 MB", pageable_ms=pageable_ms, pinned_ms=pinned_ms)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(8192, 8192, device=bench.device, dtype=dtype)
        ms = bench.one_call_ms(partial(torch.matmul, x, x), 5)
        bench.record(f"matmul {dtype}", TFLOP_per_s=2 * 8192**3 / ms / 1e9)
    bench.record("launch", us=1e3 * bench.running_ms(lambda: large[:8].add_(1), 2000))


def right(bench: Bench) -> None:
    """Record gpu_right.py's errors: `exact` must be as small as `cpu`, and `default` as small as `cpu_tf32`."""
    for name, errors in measure_errors(bench):
        bench.record(f"right: {name}", **errors)


def again(bench: Bench) -> None:
    """Record whether the same updates give the same bytes, also with PyTorch's deterministic algorithms."""
    updates = 2 if bench.tiny else 5
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            for name in ("segmentation", "classifier resnet18", "irnet", "moco"):
                ends = []
                for _ in range(2):
                    model, update = make_step(name, bench.setup(name, size=64 if bench.tiny else 160, batch_size=4))
                    for number in range(updates):
                        update(number)
                    ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
                same, largest = bool(torch.equal(*ends)), float((ends[0] - ends[1]).abs().max())
                bench.record(f"again: {name}, deterministic={deterministic}", same=same, largest=largest)
        except RuntimeError as error:
            bench.record(f"again: deterministic={deterministic}", refused=_first_line(error))
        finally:
            torch.use_deterministic_algorithms(False)


def speed(bench: Bench) -> None:
    """Record updates per second, kernels, device time and peak memory of every training, as the project runs it."""
    for name in BATCH_SIZES:
        _, update = make_step(name, bench.setup(name))
        numbers = count()

        def once(update: Callable[[int], Any] = update, numbers: Iterator[int] = numbers) -> None:
            update(next(numbers))

        ms = bench.running_ms(once, 5 if name.startswith("irnet") and not bench.tiny else None)
        peak = bench.peak_gb(once)
        bench.record(f"speed: {name}", updates_per_s=1e3 / ms, ms=ms, peak_GB=peak, **bench.kernels(once))


def irnet(bench: Bench) -> None:
    """Record where the time of an IRNet update goes."""
    images, grid, radius = (2, 16, 4) if bench.tiny else (16, 80, 10)
    drawn = bench.rng.integers(0, 3, (images, PATHOLOGIES, grid, grid)).astype(np.uint8)
    labels = torch.from_numpy(drawn).to(bench.device)
    labels[labels == 2] = 255
    boundary = torch.rand(images, grid, grid, device=bench.device, requires_grad=True)
    model = IRNet(False).to(bench.device).train()
    inputs = torch.randn(images, 3, 4 * grid, 4 * grid, device=bench.device)
    pairs = PairLabels(labels, radius)
    counts = pairs.counts()

    def losses() -> object:
        return irnet_losses(boundary, None, pairs, counts)

    bench.record(
        "irnet",
        trunk_ms=bench.one_call_ms(lambda: model.trunk(inputs)),
        network_ms=bench.one_call_ms(lambda: model(inputs)),
        counts_ms=bench.one_call_ms(pairs.counts, 5),
        losses_ms=bench.one_call_ms(losses, 5),
        **bench.kernels(losses),
    )
    batch = random_batch(bench.rng, images, 4 * grid)
    config = irnet_sampling(4 * grid)
    bench.record("irnet sample (CPU)", ms=bench.one_call_ms(lambda: training_sample(batch, config, 0, ALONE), 3))


def maps(bench: Bench) -> None:
    """Record images per second of CAMs, propagation and prediction."""
    number = 2 if bench.tiny else 64
    pixels = random_pixels(bench.rng, number, bench.size)
    for name, fast in (("float32", False), ("bf16 channels_last", True)):
        model = build_classifier("densenet121", PATHOLOGIES, "ignore").to(bench.device).eval()
        if fast:
            model = model.to(memory_format=torch.channels_last)

        def cams(model: torch.nn.Module = model, fast: bool = fast) -> None:
            """Map one batch and bring the results to the host, as the CAM actor does."""
            x = network_input(torch.tensor(pixels).to(bench.device), "imagenet")
            if fast:
                x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast(bench.device.type, torch.bfloat16, enabled=fast):
                logits, found = grad_cam(model, x, PATHOLOGIES)
            logits.float().cpu()
            found.float().cpu()

        ms = bench.one_call_ms(cams, 1 if bench.tiny else 10)
        bench.record(f"cams {name}", images_per_s=1e3 * number / ms, peak_GB=bench.peak_gb(cams))
    _propagation(bench)
    model = segmentation_network().to(bench.device).eval()
    few = pixels[:8]
    ms = bench.one_call_ms(lambda: predict(model, few, "imagenet", bench.device), 10)
    bench.record(f"prediction of {len(few)}", ms=ms)
    _histogram(bench, len(few))


def _propagation(bench: Bench) -> None:
    """Record images per second of the propagation by each random walk, and the time of its parts."""
    number, grid = (2 if bench.tiny else 16), bench.size // 4
    model = IRNet(False).to(bench.device).eval()
    inputs = torch.randn(number, 3, bench.size, bench.size, device=bench.device)
    boundary = torch.rand(number, grid, grid, device=bench.device)
    boxes = [content_box(*ORIGINAL, bench.size).on_grid(bench.size, grid)] * number
    low = torch.rand(number, PATHOLOGIES, bench.size // 32, bench.size // 32, device=bench.device)
    network_ms = bench.one_call_ms(lambda: boundary_maps(model, inputs, True), 5)
    for walk, settings in WALKS.items():
        walk_ms = bench.one_call_ms(partial(propagate_cams, low, boundary, None, boxes, settings, 0.0), 5)
        matrix_ms = bench.one_call_ms(partial(Transition, boundary, settings.radius, settings.beta), 5)
        times = {"network_ms": network_ms, "walk_ms": walk_ms, "of_it_matrix_ms": matrix_ms}
        bench.record(f"propagation {walk}", images_per_s=1e3 * number / (network_ms + walk_ms), **times)


def _histogram(bench: Bench, number: int) -> None:
    """Record the time of score histograms on the device, and whether they equal the project's, made on the CPU."""
    shape = (number, PATHOLOGIES, bench.size, bench.size)
    scores, truth = torch.rand(shape, device=bench.device), torch.rand(shape, device=bench.device) > 0.8
    cuts = torch.from_numpy(SEGMENTATION_GRID).to(bench.device)
    bins = len(SEGMENTATION_GRID) + 1
    first = (torch.arange(PATHOLOGIES, device=bench.device) * 2 * bins).view(1, PATHOLOGIES, 1, 1)

    def on_device() -> torch.Tensor:
        """Count all scores, int64 [K * 2 * bins]."""
        index = (torch.bucketize(scores, cuts) + bins * truth + first).flatten()
        counts = torch.zeros(2 * bins * PATHOLOGIES, dtype=torch.int64, device=bench.device)
        return counts.scatter_add_(0, index, torch.ones_like(index))

    histogram = ScoreHistogram(PATHOLOGIES, SEGMENTATION_GRID)
    for image_scores, image_truth in zip(scores.cpu().numpy(), truth.cpu().numpy(), strict=True):
        for k in range(PATHOLOGIES):
            histogram.add(k, image_scores[k], image_truth[k])
    equal = bool((on_device().cpu().numpy() == histogram.counts.ravel()).all())
    bench.record("histogram on the device", ms=bench.one_call_ms(on_device, 5), equal=equal)


def packing(bench: Bench) -> None:
    """Record updates per second of 1, 2, 4 and 8 processes that train side by side on one device."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = ["--tiny"] if bench.tiny else []
    for processes in [1, 2] if bench.tiny else [1, 2, 4, 8]:
        begin = time.time() + 20
        command = [sys.executable, __file__, "--worker", str(begin), *options]
        workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(processes)]
        held = 0.0
        if bench.on_gpu:
            time.sleep(max(0.0, begin + _WORKER_SECONDS / 2 - time.time()))
            free, total = torch.cuda.mem_get_info()
            held = (total - free) / 1e9
        rates = [float(worker.communicate()[0].split()[-1]) for worker in workers]
        bench.record(f"packing {processes}", updates_per_s=sum(rates), each=sum(rates) / processes, device_GB_used=held)


def work_beside_others(bench: Bench, begin: float) -> None:
    """Be one process of packing(): train from `begin` (seconds since 1970) on, and print the updates per second."""
    torch.set_num_threads(1)
    _, update = make_step("segmentation", bench.setup("segmentation"))
    for number in range(3):
        update(number)
    bench.synchronise()
    time.sleep(max(0.0, begin - time.time()))
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < (0.3 if bench.tiny else _WORKER_SECONDS):
        update(done)
        done += 1
    bench.synchronise()
    print(done / (time.perf_counter() - start))


def variants(bench: Bench) -> None:
    """Record what other ways of computing give each training, by gpu_variants.py."""
    for name, numbers in measure_variants(bench):
        bench.record(f"variant: {name}", **numbers)


def graphs(bench: Bench) -> None:
    """Record whether updates as CUDA graphs give the weights of the same updates without."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    for name, numbers in compare_graphs(bench):
        bench.record(f"graph: {name}", **numbers)


PARTS: dict[str, Callable[[Bench], None]] = {
    "machine": machine,
    "right": right,
    "again": again,
    "graphs": graphs,
    "speed": speed,
    "variants": variants,
    "irnet": irnet,
    "maps": maps,
    "packing": packing,
}


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:160]


def main() -> int:
    """Run the parts that were asked for, and return 1 if one of them failed."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("--tiny", action="store_true", help="small sizes; the default without a GPU")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write gpu.json there")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    bench = Bench(asked.tiny or not torch.cuda.is_available())
    if asked.worker:
        work_beside_others(bench, asked.worker)
        return 0
    failed = []
    for name in asked.only:
        start = time.perf_counter()
        try:
            PARTS[name](bench)
        except Exception as error:  # so that the other parts are measured too
            failed.append(name)
            print(f"{name} FAILED: {type(error).__name__}: {error}\n{traceback.format_exc()}", flush=True)
        print(f"  ({name}: {time.perf_counter() - start:.0f} s)", flush=True)
        if bench.on_gpu:
            torch.cuda.empty_cache()
        if asked.out:
            asked.out.mkdir(parents=True, exist_ok=True)
            (asked.out / "gpu.json").write_text(json.dumps(bench.numbers, indent=1, default=str))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
