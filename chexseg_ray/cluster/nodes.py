"""The nodes that a cluster has and may get, and what follows for a study: where it trains, which roots it may use."""

from pathlib import Path

import yaml

from chexseg_ray.config.resources import PredictionCompute, WorkerCompute
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.errors import InputError, TransientError, shortened
from chexseg_ray.plan.demand import Node, still_to_come
from chexseg_ray.store.filesystem import open_filesystem

_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml").expanduser()  # where `ray up` puts a cluster's file on its head
_MOST = 1e15  # of a resource in that file; memory is in bytes
_REMEDY = "compute.autoscaling, which is read instead"


def one_line_of(error: BaseException) -> str:
    """The text of an error in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def nodes() -> list[Node]:
    """The total resources (CPU, GPU, ...) of each node that is alive.

    Raises:
        TransientError: the cluster does not answer.
    """
    import ray
    from ray.exceptions import RayError

    try:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    except RayError as error:
        raise TransientError(f"the cluster does not report its nodes ({one_line_of(error)}): run again") from None


def growth(config: StudyConfig) -> list[Node]:
    """The total resources of each node that the cluster's autoscaler may still add, each as often as it may come.

    Ray does not report these nodes. They come from the config's `compute.autoscaling`; where that is empty, from the
    cluster's own file, which lies on the head of a cluster that `ray up` made.

    Args:
        config: the study's config.

    Raises:
        InputError: that file cannot be read as one.
        TransientError: the cluster does not report which nodes are alive.
    """
    if config.compute.autoscaling:
        kinds = [({"CPU": kind.num_cpus, "GPU": kind.num_gpus}, kind.max_nodes) for kind in config.compute.autoscaling]
        return still_to_come(kinds, sum(max_nodes for _, max_nodes in kinds), nodes())
    if not _BOOTSTRAP.is_file():
        return []
    return still_to_come(*_kinds_in(_BOOTSTRAP), nodes())


def _kinds_in(path: Path) -> tuple[list[tuple[Node, int]], int]:
    """Read the file of a cluster that `ray up` made.

    Returns:
        The resources of a node and the largest number of nodes of each kind but the head's, and that of all kinds.

    Raises:
        InputError: the file is none of `ray up`, or a number is none.
    """
    try:
        cluster = yaml.safe_load(path.read_text(encoding="utf-8"))
        head, types, most = (cluster[name] for name in ("head_node_type", "available_node_types", "max_workers"))
        others = [kind for name, kind in types.items() if name != head]
        kinds = [(kind["resources"], kind.get("max_workers", most)) for kind in others]
        numbers = [*(limit for _, limit in kinds), *(n for resources, _ in kinds for n in resources.values()), most]
        if not all(isinstance(number, int | float) and 0 <= number < _MOST for number in numbers):
            raise ValueError(f"a number is not in 0 to {_MOST:.0g}")
        return [(resources, int(limit)) for resources, limit in kinds], int(most)
    except (OSError, yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = getattr(error, "problem", None) or error  # of PyYAML, without the lines that it quotes
        reason = f"{type(error).__name__}: {shortened(' '.join(str(what).split()), 200)}"
    except RecursionError:
        reason = "it is nested too deeply"
    raise InputError(f"{path}: is not the file of a cluster of `ray up` ({reason}): repair it, or set {_REMEDY}")


def with_workers(config: StudyConfig) -> StudyConfig:
    """Give one worker process to everything that must not run in the driver; the numbers are the same.

    These are trainings, and the prediction of the test images, that ask for a GPU, which Ray must count, or for more
    CPUs than the driver's node has (a cluster's head often has none for work).

    Args:
        config: the study's config.

    Returns:
        The config with the changed sections of `compute`.
    """
    import ray

    driver_node = ray.get_runtime_context().get_node_id()
    listed = ray.nodes()  # type: ignore[no-untyped-call]
    cpus = next(node["Resources"].get("CPU", 0) for node in listed if node["NodeID"] == driver_node)

    def exceeds_driver(section: WorkerCompute | PredictionCompute) -> bool:
        """Whether a section asks for more than a process in the driver may use."""
        return section.num_gpus > 0 or section.num_cpus > cpus

    changed: dict[str, object] = {}
    for name, section in config.compute:
        if isinstance(section, WorkerCompute) and section.num_workers == 0 and exceeds_driver(section):
            changed[name] = section.model_copy(update={"num_workers": 1})
        if isinstance(section, PredictionCompute) and section.max_actors == 0 and exceeds_driver(section):
            changed[name] = section.model_copy(update={"min_actors": 1, "max_actors": 1})
    return config.model_copy(update={"compute": config.compute.model_copy(update=changed)})


def refuse_local_roots(config: StudyConfig) -> None:
    """Refuse roots that are folders of one machine on a cluster that has several nodes or may get more.

    Args:
        config: the study's config.

    Raises:
        InputError: the store or the data are in a local folder that the other nodes do not have; names store.root or
            data.root.
    """
    if config.compute.shared_folders or (len(nodes()) == 1 and not growth(config)):
        return
    for field, root in (("store.root", config.store.root), ("data.root", config.data.root)):
        if root is not None and open_filesystem(root, field)[0].type_name == "local":
            rule = "a local folder, and the cluster has several nodes"
            remedy = (
                "name an s3:// or gs:// URI, or set compute.shared_folders=true "
                "if every node has this folder (NFS, Lustre)"
            )
            raise InputError(f"{field}={root}: {rule}: {remedy}")
