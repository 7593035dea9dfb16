"""Ray for a study: one on this machine's loopback, or the cluster of RAY_ADDRESS, whose limits are named before anything waits for them."""

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from chexseg_ray.artifacts import Store, open_filesystem
from chexseg_ray.config import StudyConfig
from chexseg_ray.demand import Node, still_to_come
from chexseg_ray.errors import InputError, TransientError

# Ray reads these when it is imported
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # trainings in the dashboard
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # what matters comes as an exception
    "RAY_AIR_NEW_OUTPUT": "0",  # else Tune prints tables at verbose=0
}
_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml").expanduser()  # where `ray up` puts a cluster's file on its head
# Without it Ray takes 127.0.0.1 for this machine's first network card and listens there. The name is for systems whose firewalls ask.
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def on_cluster() -> bool:
    """Whether there is a cluster to join; a submitted job sees its own."""
    return bool(os.environ.get("RAY_ADDRESS"))


def cpus_here() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class RaySession:
    """Starts Ray once, when something needs it; ends what it started."""

    def __init__(self, dashboard: bool, num_cpus: int, check: Callable[[Sequence[Node]], None] | None = None) -> None:
        self._dashboard = dashboard
        self._num_cpus = num_cpus
        self._check = check
        self._own = False

    def start(self) -> None:
        """Join the cluster of RAY_ADDRESS, or start one on this machine's loopback.

        Raises:
            InputError: the cluster's Ray or Python is another one, its token is not ours, or it lacks what the study asks for.
            TransientError: no cluster answers.
        """
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if not on_cluster():
            os.environ.setdefault(_LOOPBACK, "0")
        import ray

        if ray.is_initialized():
            return
        self._own = True
        if on_cluster():
            _join()
        else:
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
            ray.init(address="local", num_cpus=self._num_cpus, include_dashboard=self._dashboard, _node_ip_address="127.0.0.1", **quiet)
            close_token_file(Path("~/.ray/auth_token").expanduser())
        ray.data.DataContext.get_current().enable_progress_bars = False  # configures ray.data's loggers, so first
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        logging.getLogger("ray.train").setLevel(logging.WARNING)
        if self._check is not None:
            self._check(nodes())

    def stop(self) -> None:
        """Shut down what start() started."""
        if self._own:
            import ray

            ray.shutdown()


def close_token_file(path: Path) -> None:
    """Leave a token file to its owner alone: a local Ray makes one that every user of the machine can read."""
    if path.is_file() and path.stat().st_uid == os.getuid():
        path.chmod(0o600)


def _join() -> None:
    import ray
    from ray.exceptions import AuthenticationError

    address = os.environ["RAY_ADDRESS"]
    if "://" in address and not address.startswith("ray://"):
        raise InputError(f"RAY_ADDRESS={address}: is the Jobs API's: name the cluster's own address, host:6379, or submit a job")
    tokens = "with token authentication, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH must be set here too"
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as error:
        raise InputError(f"RAY_ADDRESS={address}: {_line(error)}: {tokens}") from None
    except ConnectionError as error:
        raise TransientError(f"RAY_ADDRESS={address}: no cluster answers ({_line(error)}): is it up? {tokens}") from None
    except RuntimeError as error:
        if not str(error).startswith("Version mismatch"):
            raise
        raise InputError(f"RAY_ADDRESS={address}: {_line(error)}: install the cluster's versions here, or run the job on the cluster") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def nodes() -> list[Node]:
    """What each node that is alive has in all."""
    import ray
    from ray.exceptions import RayError

    try:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    except RayError as error:
        raise TransientError(f"the cluster does not say which nodes it has ({_line(error)}): run again") from None


def growth(config: StudyConfig) -> list[Node]:
    """What each node has that the cluster's autoscaler may still add, each as often as it may come: as compute.autoscaling says it, or, on
    the head of a cluster that `ray up` made, as that cluster's own file does. Ray itself does not tell."""
    if config.compute.autoscaling:
        kinds = [({"CPU": kind.num_cpus, "GPU": kind.num_gpus}, kind.max_nodes) for kind in config.compute.autoscaling]
        return still_to_come(kinds, sum(most for _, most in kinds), nodes())
    if not _BOOTSTRAP.is_file():
        return []
    cluster = yaml.safe_load(_BOOTSTRAP.read_text(encoding="utf-8"))
    types = {name: kind for name, kind in cluster["available_node_types"].items() if name != cluster["head_node_type"]}
    kinds = [(kind["resources"], kind.get("max_workers", 0)) for kind in types.values()]
    return still_to_come(kinds, cluster["max_workers"], nodes())


def with_workers(config: StudyConfig) -> StudyConfig:
    """The config with one worker for each training that must not run in the driver: its node has too few CPUs for work (a cluster's head
    often has none), or the training wants a GPU, which Ray must count. The numbers are the same."""
    import ray

    own_id = ray.get_runtime_context().get_node_id()
    cpus = next(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["NodeID"] == own_id)  # type: ignore[no-untyped-call]
    update = {}
    for stage in ("classifier", "moco", "irnet"):
        own = getattr(config.compute, stage)
        if own.num_workers == 0 and (own.num_gpus or own.num_cpus > cpus):
            update[stage] = own.model_copy(update={"num_workers": 1})
    return config.model_copy(update={"compute": config.compute.model_copy(update=update)})


def refuse_local_roots(config: StudyConfig) -> None:
    """On a cluster of several nodes, or one that grows by itself, a folder of one machine is not there for the others.

    Raises:
        InputError: naming store.root or data.root.
    """
    if config.compute.shared_folders or (len(nodes()) == 1 and not growth(config)):
        return
    for field, root in (("store.root", config.store.root), ("data.root", config.data.root)):
        if root is not None and open_filesystem(root, field)[0].type_name == "local":
            raise InputError(
                f"{field}={root}: a local folder, and the cluster has several nodes: name an s3:// or gs:// URI, or set "
                "compute.shared_folders=true if every node has this folder (NFS, Lustre)"
            )


def describe_job(submission: str | None, **facts: str) -> None:
    """Add facts to the metadata of the submitted job that this process is, for the dashboard and `ray job list`. Nothing outside a job."""
    if submission is None:
        return
    import ray
    from ray.dashboard.modules.job.common import JobInfoStorageClient  # Ray has no public way to say more of a running job

    worker: Any = ray._private.worker.global_worker
    client = JobInfoStorageClient(worker.gcs_client)

    async def add() -> None:
        info = await client.get_info(submission)
        if info is not None:
            await client.put_info(submission, replace(info, metadata={**(info.metadata or {}), **facts}))

    asyncio.run(add())


@contextmanager
def claim_on_cluster(store: Store, who: str) -> Iterator[None]:
    """One driver a store on one cluster: a named actor on the driver's node, which dies with its job.

    Args:
        store: whose root is claimed.
        who: what a second driver is told.

    Raises:
        TransientError: another job of the cluster holds it, or the cluster does not answer.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = f"{store.filesystem.type_name} {store.path('')}"  # two URIs of one place are one store
    name = f"store {hashlib.sha256(place.encode()).hexdigest()[:16]}"
    holder: Any = None
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    for _ in range(3):
        try:
            remote: Any = ray.remote(num_cpus=0)(_Holder)
            holder = remote.options(name=name, namespace="chexseg_ray", scheduling_strategy=here).remote(who)
            ray.get(holder.who.remote(), timeout=60)
            break
        except (GetTimeoutError, RayActorError):
            raise TransientError(f"{store.root}: cannot be claimed, this node starts no process: look at its memory and run again") from None
        except ValueError:  # the name is taken
            try:
                held: Any = ray.get(ray.get_actor(name, namespace="chexseg_ray").who.remote(), timeout=20)
            except (ValueError, RayActorError):  # it has just gone
                continue
            except GetTimeoutError:
                held = "a job that does not answer"
            raise TransientError(f"{store.root}: in use by {held}: wait for it, or stop it") from None
    else:
        raise TransientError(f"{store.root}: its claim changes hands: run again")
    try:
        yield
    finally:
        ray.kill(holder)


class _Holder:
    def __init__(self, who: str) -> None:
        self._who = who

    def who(self) -> str:
        return self._who
