"""Estimates how long the missing steps take on some GPUs and CPUs, with trials packed as Ray packs them. Arithmetic."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chexseg_ray.config.resources import ActorCompute, WorkerCompute
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.plan.plan import PlannedStep
from chexseg_ray.study.graph import Study
from chexseg_ray.study.steps import KINDS

CPUS_PER_GPU = 8  # of the clusters that the estimate is for
_SLOTS = 1000  # parts that a GPU or CPU is counted in
_GPUS, _CPUS = (1, 8, 64), (8, 64)  # sizes of the machines in the estimate


@dataclass(frozen=True)
class Machine:
    """The number of GPUs and CPUs of all nodes together."""

    gpus: int
    cpus: int

    def __str__(self) -> str:
        cpus = f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}"
        return f"{self.gpus} GPU{'s' if self.gpus > 1 else ''} and {cpus}" if self.gpus else cpus


def wall_hours(missing: Sequence[PlannedStep], study: Study, config: StudyConfig, machine: Machine) -> float:
    """Estimate the hours from start to end.

    Shared steps run one after another: decoding and pseudo masks on all CPUs, CAMs and propagation on as many actors
    as `compute` allows, a training on its workers and threads. Then the trials run, the longest first, each on its CPUs
    or on its share of a GPU, where it is slower in proportion.

    Args:
        missing: the steps to build.
        study: the graph.
        config: the study's config.
        machine: the GPUs and CPUs that run it.
    """
    trials = {item.step.address: item for item in missing if KINDS[item.step.name].per_trial}
    shared = sum(_shared_hours(item, config, machine) for item in missing if item.step.address not in trials)
    slots = (machine.gpus or machine.cpus) * _SLOTS
    ends = [0.0] * slots
    heapq.heapify(ends)
    works = []
    for point, evaluation in study.points:
        compute = config.compute.segmentation.of(point.weak_n)
        items = [
            trials[step.address] for step in (evaluation, evaluation.inputs["segmentation"]) if step.address in trials
        ]
        part = _part_of_machine(compute, machine)
        threads = float(min(compute.threads, machine.cpus))
        if not machine.gpus:
            threads = min(threads, part)  # more threads than the CPUs that Ray counts share these
        length = sum(item.gpu_hours + item.cpu_hours / threads for item in items)
        if length:
            works.append((length / min(part, 1.0) if machine.gpus else length, max(1, round(part * _SLOTS))))
    for length, width in sorted(works, reverse=True):
        taken = [heapq.heappop(ends) for _ in range(min(width, slots))]
        for _ in taken:
            heapq.heappush(ends, max(taken) + length)
    return shared + max(ends)


def _part_of_machine(compute: WorkerCompute, machine: Machine) -> float:
    """Return the number of GPUs that a trial holds; on a machine without GPUs, the number of CPUs."""
    cpus, gpus = (sum(bundle[kind] for bundle in compute.trial_bundles) for kind in (0, 1))
    if not machine.gpus:
        return cpus
    return gpus or cpus * machine.gpus / machine.cpus


def _shared_hours(item: PlannedStep, config: StudyConfig, machine: Machine) -> float:
    compute = config.compute.of(KINDS[item.step.name].asks)
    if isinstance(compute, ActorCompute):
        room = machine.gpus / compute.num_gpus if compute.num_gpus else machine.cpus / compute.num_cpus
        actors = min(max(1, compute.max_actors), max(1.0, room))
        return item.gpu_hours / actors + item.cpu_hours / min(compute.threads * actors, machine.cpus)
    if isinstance(compute, WorkerCompute):
        workers = max(1, compute.num_workers)
        limit = machine.gpus if compute.num_gpus else machine.cpus
        workers = max(1, min(workers, limit))
        return item.gpu_hours / workers + item.cpu_hours / min(compute.threads * workers, machine.cpus)
    return item.gpu_hours + item.cpu_hours / machine.cpus


def schedule_lines(missing: Sequence[PlannedStep], study: Study, config: StudyConfig, here: Machine) -> Iterator[str]:
    """Yield how long the missing steps take on this machine and on larger ones.

    The larger machines have GPUs if the config requests any, otherwise CPUs only.

    Args:
        missing: the steps to build.
        study: the graph.
        config: the study's config.
        here: this machine.
    """
    if not missing:
        return
    yield ""
    on_gpus = any(item.gpu_hours for item in missing)
    if here.gpus or not on_gpus:
        yield f"estimated time on this machine ({here}): {hours_text(wall_hours(missing, study, config, here))}"
    if not on_gpus:
        for cpus in _CPUS:
            machine = Machine(0, cpus)
            yield f"  {machine}: {hours_text(wall_hours(missing, study, config, machine))}"
        return
    rates, unit = config.compute.rates, config.compute.rates.currency
    yield f"estimated time on a cluster with {CPUS_PER_GPU} CPUs per GPU, and its cost if it is held from start to end"
    for gpus in _GPUS:
        hours = wall_hours(missing, study, config, Machine(gpus, CPUS_PER_GPU * gpus))
        price = hours * gpus * (rates.gpu_hour + CPUS_PER_GPU * rates.cpu_hour)
        name = "GPU" if gpus == 1 else "GPUs"
        yield f"  {gpus:>2} {name}: {hours_text(hours)}; {hours * gpus:.0f} GPU-hours, {price:.0f} {unit}"


def hours_text(hours: float) -> str:
    """Return `hours` as a text such as `40 s`, `12 min` or `3.5 h`."""
    if hours < 1 / 60:
        return f"{max(1, round(hours * 3600))} s"
    return f"{hours * 60:.0f} min" if hours < 1.5 else f"{hours:.1f} h"
