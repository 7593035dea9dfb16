"""The plan of a study: every step with its state, the number of trainings that use it, and its cost. Runs nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.plan.cost import Cost, Sizes, step_cost
from chexseg_ray.store.step import Step
from chexseg_ray.store.store import Store
from chexseg_ray.study.graph import Study
from chexseg_ray.study.steps import KINDS


@dataclass(frozen=True)
class PlannedStep:
    """A step of the plan.

    Args:
        step: the step itself.
        built: whether the store has it.
        serves: number of sweep points that are made from it.
        cost: the cost of making it.
        gpu_hours: hours of one GPU, at the rates of compute.rates.
        cpu_hours: hours of one CPU thread, at the rates of compute.rates.
    """

    step: Step
    built: bool
    serves: int
    cost: Cost
    gpu_hours: float
    cpu_hours: float


def plan(study: Study, store: Store, config: StudyConfig, sizes: Sizes) -> list[PlannedStep]:
    """Return every step of the study with its state and cost, each after its inputs.

    Args:
        study: the graph.
        store: the study's store, which may have some of the steps.
        config: the study's config.
        sizes: number of images of each split, as far as it is known.
    """
    planned, steps = [], study.steps()
    found, serves = store.find_all(steps), _serves(study)
    weak_n = {
        step.address: point.weak_n
        for point, evaluation in study.points
        for step in (evaluation, evaluation.inputs["segmentation"])
    }
    rates = config.compute.rates
    for step in steps:
        cost = step_cost(step, sizes, rates.decode_seconds)
        gpu_hours, cpu_hours = 0.0, cost.cpu_seconds / 3600
        if asks_for_gpu(step, config, weak_n):
            gpu_hours = cost.gpu_flops / rates.gpu_flops_per_second / 3600
        else:
            cpu_hours += cost.flops / rates.cpu_flops_per_second / 3600
        planned.append(
            PlannedStep(step, step.address in found, serves.get(step.address, 0), cost, gpu_hours, cpu_hours)
        )
    return planned


def _serves(study: Study) -> dict[str, int]:
    """Return {address: number of points that are made from the step}."""
    counts: dict[str, int] = {}
    for _, evaluation in study.points:
        for step in (evaluation, *evaluation.ancestors()):
            counts[step.address] = counts.get(step.address, 0) + 1
    return counts


def asks_for_gpu(step: Step, config: StudyConfig, weak_n: Mapping[str, int]) -> bool:
    """Return whether a step requests a GPU.

    Args:
        step: the step.
        config: the study's config.
        weak_n: the size of the weak set by the address of each trial's steps.
    """
    kind = KINDS[step.name]
    section = config.compute.segmentation.of(weak_n[step.address]) if kind.per_trial else config.compute.of(kind.asks)
    return getattr(section, "num_gpus", 0) > 0


def known_sizes(study: Study, store: Store, config: StudyConfig) -> dict[str, int]:
    """Return the number of images of each split, as far as it is known without reading the data.

    It comes from the split's manifest if that is built, otherwise from `data.phantom` or `compute.rates.images`.

    Args:
        study: the graph.
        store: the study's store, which may have the manifests.
        config: the study's config.
    """
    sizes: dict[str, int] = {str(split): number for split, number in config.compute.rates.images.items()}
    phantom, validation = config.data.phantom, config.data.num_validation
    if config.data.root is None and phantom is not None:
        sizes = {
            "weak": round(1.7 * phantom.num_train_patients),
            "test": phantom.num_test_images,
            "validation": validation,
            "expert_train": phantom.num_expert_images - validation,
        }
    return sizes | built_sizes(study, store)


def built_sizes(study: Study, store: Store) -> dict[str, int]:
    """Return the number of images of each split whose manifest is built.

    Args:
        study: the graph.
        store: the study's store.
    """
    records = {step.config["split"]: store.find(step) for step in manifests(study)}
    return {split: record.rows for split, record in records.items() if record is not None}


def manifests(study: Study) -> list[Step]:
    """Return the manifest step of each split that `study` uses."""
    return [step for step in study.upstream() if step.name == "manifest"]
