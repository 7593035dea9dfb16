"""How long what is missing takes on so many GPUs: the driver's order of steps, and trials packed as Ray packs them. Arithmetic."""

import heapq
from collections.abc import Iterator, Sequence

from chexseg_ray.build import trial_resources
from chexseg_ray.config import ActorCompute, DataParallelCompute, StudyConfig
from chexseg_ray.pipeline import TRIAL_STEPS, Study
from chexseg_ray.plan import PlannedStep

CPUS_PER_GPU = 8  # of the machines that the estimate is for
_SLOTS = 1000  # parts of a GPU that fractions are counted in


def wall_hours(missing: Sequence[PlannedStep], study: Study, config: StudyConfig, gpus: int) -> float:
    """Hours from start to end on `gpus` GPUs with CPUS_PER_GPU CPUs each.

    Shared steps come one after another, as the driver builds them: decoding and pseudo masks over all CPUs, CAMs and propagation over as many
    actors as compute allows, a training over its replicas. Then the trials, the longest first, each in its part of a GPU, where it is slower
    in proportion.
    """
    shared = sum(_shared_hours(item, config, gpus) for item in missing if item.step.name not in TRIAL_STEPS)
    hours: dict[str, float] = {item.step.address: item.gpu_hours + item.cpu_hours for item in missing if item.step.name in TRIAL_STEPS}
    ends = [0.0] * gpus * _SLOTS
    heapq.heapify(ends)
    works = []
    for point, evaluation in study.points:
        own = trial_resources(config, point.weak_n)
        part = min(own.num_gpus, 1.0) * max(1, own.num_workers) or 1.0 / CPUS_PER_GPU * own.num_cpus
        length = hours.get(evaluation.address, 0.0) + hours.get(evaluation.inputs["segmentation"].address, 0.0)
        if length:
            works.append((length / min(part, 1.0), max(1, round(part * _SLOTS))))
    for length, slots in sorted(works, reverse=True):
        taken = [heapq.heappop(ends) for _ in range(min(slots, gpus * _SLOTS))]
        for _ in taken:
            heapq.heappush(ends, max(taken) + length)
    return shared + max(ends)


def _shared_hours(item: PlannedStep, config: StudyConfig, gpus: int) -> float:
    name, cpus = item.step.name, gpus * CPUS_PER_GPU
    own = getattr(config.compute, name, None)
    if isinstance(own, ActorCompute):
        side_by_side = min(own.max_actors, max(1.0, gpus / own.num_gpus)) if own.num_gpus else min(own.max_actors, cpus / own.num_cpus)
        return (item.gpu_hours + item.cpu_hours) / side_by_side
    if isinstance(own, DataParallelCompute):
        return (item.gpu_hours + item.cpu_hours) / min(max(1, own.num_workers), gpus)
    return item.gpu_hours + item.cpu_hours / cpus


def schedule_lines(missing: Sequence[PlannedStep], study: Study, config: StudyConfig) -> Iterator[str]:
    """One line for each number of GPUs."""
    if not missing:
        return
    yield ""
    yield f"from start to end, with {CPUS_PER_GPU} CPUs a GPU"
    price = config.compute.rates.gpu_hour + CPUS_PER_GPU * config.compute.rates.cpu_hour
    for gpus in (1, 8, 64):
        hours = wall_hours(missing, study, config, gpus)
        held, unit = hours * gpus, config.compute.rates.currency
        yield f"  {gpus:>2} GPUs: {hours:6.1f} h; {held:6.0f} GPU-hours, {held * price:6.0f} {unit} if all are held from start to end"
