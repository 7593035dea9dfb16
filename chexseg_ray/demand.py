"""What each stage asks of a cluster, in bundles that must each fit on one node; and whether some nodes can give it. Arithmetic, no Ray."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from chexseg_ray.build import trial_resources
from chexseg_ray.config import StudyConfig
from chexseg_ray.errors import InputError
from chexseg_ray.pipeline import Study

GROUP_DRIVER_CPUS = 0.01  # a trial that drives a worker group must not hold the CPUs that its workers wait for
_DATA_TASKS = {
    "images": "images",
    "phantom": "images",
    "benchmark": "images",
    "pseudo_masks": "pseudo_masks",
}  # steps, and the section that says what a task asks for
_TOLERANCE = 1e-6

Node = Mapping[str, float]  # CPU, GPU: what one node has in all


@dataclass(frozen=True)
class Demand:
    """The least that a stage needs at once to go on: `bundles` of (CPUs, GPUs), all at the same time."""

    stage: str
    bundles: tuple[tuple[float, float], ...]

    def __str__(self) -> str:
        large = [bundle for bundle in self.bundles if bundle != (GROUP_DRIVER_CPUS, 0.0)]
        kinds = [f"{large.count(bundle)} x {_words(*bundle)}" for bundle in dict.fromkeys(large)]
        return f"compute.{self.stage} asks for {' and '.join(kinds)}"

    def fits(self, nodes: Sequence[Node]) -> bool:
        """Whether the bundles find room on empty nodes, each bundle whole on one of them."""
        free = [[node.get("CPU", 0.0), node.get("GPU", 0.0)] for node in nodes]
        for cpus, gpus in sorted(self.bundles, reverse=True, key=lambda bundle: (bundle[1], bundle[0])):
            room = [own for own in free if own[0] + _TOLERANCE >= cpus and own[1] + _TOLERANCE >= gpus]
            if not room:
                return False
            tightest = min(room, key=lambda own: (own[1], own[0]))
            tightest[0], tightest[1] = tightest[0] - cpus, tightest[1] - gpus
        return True


def _words(cpus: float, gpus: float) -> str:
    """`1 CPU`, `4 CPUs + 0.5 GPU`."""
    parts = [f"{number:g} {unit}{'s' if number > 1 else ''}" for number, unit in ((cpus, "CPU"), (gpus, "GPU")) if number]
    return " + ".join(parts)


def describe_nodes(nodes: Sequence[Node]) -> str:
    """`2 nodes of 8 CPUs + 1 GPU, 1 node of no CPU`, the largest first."""
    sizes = sorted(((node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes), reverse=True)
    kinds = [_words(*size) or "no CPU for work" for size in sizes]
    return ", ".join(f"{kinds.count(kind)} node{'s' if kinds.count(kind) > 1 else ''} of {kind}" for kind in dict.fromkeys(kinds)) or "no node"


def demands(config: StudyConfig, study: Study, built: Collection[str] = ()) -> dict[str, list[Demand]]:
    """What the steps of a study ask for, by the step's name; segmentation has one demand for each kind of trial.

    Args:
        config: of the study.
        study: its graph.
        built: addresses of steps that ask for nothing any more.
    """
    compute, used = config.compute, {step.name for step in study.steps() if step.address not in built}
    out: dict[str, list[Demand]] = {}
    for step, section in _DATA_TASKS.items():
        out[step] = [Demand(section, ((getattr(compute, section).num_cpus, 0.0),))]
    for stage in ("cams", "propagation"):
        own = getattr(compute, stage)
        reader = ((compute.images.num_cpus, 0.0),) if own.num_gpus else ()  # on CPUs, reading happens inside the actor
        out[stage] = [Demand(stage, (*((own.num_cpus, own.num_gpus),) * own.min_actors, *reader))]
    out["prediction"] = out["cams"]
    for stage in ("classifier", "moco", "irnet"):
        own = getattr(compute, stage)
        out[stage] = [Demand(stage, ((own.num_cpus, own.num_gpus),) * own.num_workers)] if own.num_workers else []  # none in the driver itself
    trials = []
    for weak_n in sorted({point.weak_n for point, step in study.points if step.address not in built}):
        trial = trial_resources(config, weak_n)
        driver = ((GROUP_DRIVER_CPUS, 0.0),) if trial.num_workers else ()
        trials.append(Demand("segmentation", (*((trial.num_cpus, trial.num_gpus),) * max(1, trial.num_workers), *driver)))
    out["segmentation"] = list(dict.fromkeys(trials))
    used |= {"prediction"} if compute.classifier.num_workers else set()  # else the driver predicts, as it trains
    return {name: own for name, own in out.items() if name in used}


def still_to_come(kinds: Sequence[tuple[Node, int]], most: int, living: Sequence[Node]) -> list[Node]:
    """Nodes that may join those alive.

    Args:
        kinds: what a node of each kind has, and how many of it there may be.
        most: how many of all kinds there may be.
        living: nodes alive, the head among them.
    """
    counts = []
    for resources, own_most in kinds:
        shape = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        counts.append((resources, own_most, sum((node.get("CPU", 0.0), node.get("GPU", 0.0)) == shape for node in living)))
    room = most - sum(there for _, _, there in counts)
    found: list[Node] = [resources for resources, own_most, there in counts for _ in range(max(0, own_most - there))]
    # a cap below the sum of the kinds leaves open which come: any one kind may, up to the cap
    return found if len(found) <= room else [node for kind, _, _ in counts for node in [n for n in found if n is kind][: max(0, room)]]


def refuse_what_is_lacking(wanted: Mapping[str, Sequence[Demand]], nodes: Sequence[Node], growth: Sequence[Node], where: str) -> None:
    """Refuse a study that would wait for ever.

    Args:
        wanted: as demands() gives it.
        nodes: what each node has.
        growth: what each node has that an autoscaler may add, each as often as it may come.
        where: `this machine` or `the cluster`.

    Raises:
        InputError: naming the field of `compute`, what it asks for and what there is.
    """
    for own in wanted.values():
        for demand in own:
            if not demand.fits([*nodes, *growth]):
                more = f", and its autoscaler may add {describe_nodes(growth)}" if growth else ""
                remedy = "run on a cluster (RAY_ADDRESS)" if where == "this machine" else "add such nodes"
                raise InputError(f"{demand}; {where} has {describe_nodes(nodes)}{more}: lower compute.{demand.stage}, or {remedy}")
