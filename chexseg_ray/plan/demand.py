"""What each stage requests from a cluster, and whether given nodes can provide it. Arithmetic, no Ray.

A request consists of bundles (CPUs, GPUs); each bundle must fit on one node.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from chexseg_ray.config.resources import (
    GROUP_DRIVER_CPUS,
    ActorCompute,
    Bundle,
    ComputeConfig,
    TaskCompute,
    TrialCompute,
    WorkerCompute,
)
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.errors import InputError
from chexseg_ray.study.graph import Study
from chexseg_ray.study.steps import KINDS

_TOLERANCE = 1e-6
_MOST_NODES = 10_000  # of a kind; no study asks for more at once

Node = Mapping[str, float]  # the total CPU and GPU of one node


@dataclass(frozen=True)
class Demand:
    """The least that a stage needs at the same time to make progress.

    Args:
        section: the section of `compute` that requests it.
        bundles: (CPUs, GPUs) each, all needed at the same time.
    """

    section: str
    bundles: tuple[Bundle, ...]

    def __str__(self) -> str:
        large = [bundle for bundle in self.bundles if bundle != (GROUP_DRIVER_CPUS, 0.0)]
        kinds = [f"{large.count(bundle)} x {_amount(*bundle)}" for bundle in dict.fromkeys(large)]
        return f"compute.{self.section} asks for {' and '.join(kinds)}"

    def fits(self, nodes: Sequence[Node]) -> bool:
        """Return whether the bundles fit on empty nodes, each bundle on one node.

        Args:
            nodes: the total CPU and GPU of each node.
        """
        free = [[node.get("CPU", 0.0), node.get("GPU", 0.0)] for node in nodes]
        for cpus, gpus in sorted(self.bundles, reverse=True, key=lambda bundle: (bundle[1], bundle[0])):
            room = [node for node in free if node[0] + _TOLERANCE >= cpus and node[1] + _TOLERANCE >= gpus]
            if not room:
                return False
            tightest = min(room, key=lambda node: (node[1], node[0]))
            tightest[0], tightest[1] = tightest[0] - cpus, tightest[1] - gpus
        return True


def _amount(cpus: float, gpus: float) -> str:
    """Return `1 CPU` or `4 CPUs + 0.5 GPU`."""
    parts = []
    for number, unit in ((cpus, "CPU"), (gpus, "GPU")):
        if number:
            plural = "s" if number > 1 else ""
            parts.append(f"{number:g} {unit}{plural}")
    return " + ".join(parts)


def describe_nodes(nodes: Sequence[Node]) -> str:
    """Return `2 nodes of 8 CPUs + 1 GPU, 1 node of 4 CPUs`, the largest first."""
    sizes = sorted(((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes), reverse=True)
    counts = Counter(_amount(*size) or "no CPU for work" for size in sizes)
    parts = [f"{count} node{'s' if count > 1 else ''} of {kind}" for kind, count in counts.items()]
    return ", ".join(parts) or "no node"


def demands(config: StudyConfig, study: Study, built: Collection[str] = ()) -> dict[str, list[Demand]]:
    """Return what the steps of a study request.

    Args:
        config: the study's config.
        study: its graph.
        built: addresses of the steps that are built and request nothing.

    Returns:
        {kind of step: demands}; a kind that runs in the driver is left out; segmentation has a demand for each size of
        the weak set whose trials request something else.
    """
    used = {step.name for step in study.steps() if step.address not in built} | {"prediction"}
    weak_sizes = sorted({point.weak_n for point, step in study.points if step.address not in built})
    wanted = {}
    for name, kind in KINDS.items():
        requests = _requests(config.compute, kind.asks, weak_sizes) if name in used else []
        if requests:
            wanted[name] = [Demand(kind.asks, bundles) for bundles in dict.fromkeys(requests)]
    return wanted


def _requests(compute: ComputeConfig, name: str, weak_sizes: Sequence[int]) -> list[tuple[Bundle, ...]]:
    """Return the bundles that a section of `compute` requests at the same time, for trials once per weak set size.

    The list is empty if the section's work runs in the calling process.
    """
    section = compute.of(name)
    if isinstance(section, TrialCompute):
        return [section.of(weak_n).trial_bundles for weak_n in weak_sizes]
    if isinstance(section, WorkerCompute):
        return [section.bundles] if section.num_workers else []
    if isinstance(section, ActorCompute):
        if not section.max_actors:
            return []
        bundles = [section.bundle] * max(1, section.min_actors)
        if section.num_gpus:
            bundles.append((compute.images.num_cpus, 0.0))  # Ray Data's reader; without a GPU the actor itself reads
        return [tuple(bundles)]
    if isinstance(section, TaskCompute):
        return [((section.num_cpus, 0.0),)]
    return []


def still_to_come(kinds: Sequence[tuple[Node, int]], most: int, living: Sequence[Node]) -> list[Node]:
    """Return the nodes that may still join.

    Args:
        kinds: the resources of a node of each kind, and the largest number of nodes of the kind.
        most: the largest number of nodes of all kinds together.
        living: the nodes that are alive, with the head.

    Returns:
        Each node as often as it may come, at most _MOST_NODES times. If `most` is below the sum over the kinds, any one
        kind may fill it.
    """
    shapes = Counter((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in living)
    alive = [shapes[resources.get("CPU", 0.0), resources.get("GPU", 0.0)] for resources, _ in kinds]
    room = max(0, most - sum(alive))
    free = [max(0, limit - number) for (_, limit), number in zip(kinds, alive, strict=True)]
    coming: list[Node] = []
    for (resources, _), number in zip(kinds, free, strict=True):
        coming += [resources] * min(number, room, _MOST_NODES)
    return coming


def refuse_what_is_lacking(
    wanted: Mapping[str, Sequence[Demand]], nodes: Sequence[Node], growth: Sequence[Node], where: str
) -> None:
    """Refuse a study that would wait forever.

    Args:
        wanted: the result of demands().
        nodes: the resources of each node.
        growth: the resources of each node that an autoscaler may add, each as often as it may come.
        where: `this machine` or `the cluster`.

    Raises:
        InputError: a demand fits on no present or future nodes; names the section of `compute` and the nodes.
    """
    for demand in itertools.chain.from_iterable(wanted.values()):
        if demand.fits([*nodes, *growth]):
            continue
        available = f"{where} has {describe_nodes(nodes)}"
        if growth:
            available += f", and its autoscaler may add {describe_nodes(growth)}"
        remedy = "run on a cluster (RAY_ADDRESS)" if where == "this machine" else "add such nodes"
        raise InputError(f"{demand}; {available}: lower compute.{demand.section}, or {remedy}")
