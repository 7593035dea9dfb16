"""Ray for a study: one on this machine's loopback, or the cluster of RAY_ADDRESS."""

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chexseg_ray.cluster.nodes import nodes, one_line_of
from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.plan.demand import Node

# Ray reads these when it is imported
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # trainings in the dashboard
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # what matters comes as an exception
    "RAY_AIR_NEW_OUTPUT": "0",  # else Tune prints tables at verbose=0
}

# Unless this is 0, Ray replaces 127.0.0.1 by the address of this machine's first network card and listens there. Ray's
# name for it comes from the systems whose firewalls then ask the user.
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def on_cluster() -> bool:
    """Whether there is a cluster to join: RAY_ADDRESS is set, which Ray does in a submitted job."""
    return bool(os.environ.get("RAY_ADDRESS"))


def cpus_here() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_here() -> int:
    """The number of GPUs that nvidia-smi lists and CUDA_VISIBLE_DEVICES does not hide; 0 without that tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listed = subprocess.run([tool, "--list-gpus"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    present = sum(line.startswith("GPU ") for line in listed.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    names = [name.strip() for name in visible.split(",")]
    hidden_from = next((i for i, name in enumerate(names) if not name or name.startswith("-")), len(names))
    return min(present, hidden_from)  # CUDA takes no notice of what follows an invalid entry such as -1


class RaySession:
    """Starts Ray once, when something needs it, and ends what it started.

    Args:
        dashboard: whether a Ray that starts here has a dashboard.
        num_cpus: CPUs of a Ray that starts here.
        check: called with the nodes once Ray runs; raises when they cannot hold the study.
    """

    def __init__(self, dashboard: bool, num_cpus: int, check: Callable[[Sequence[Node]], None] | None = None) -> None:
        self._dashboard = dashboard
        self._num_cpus = num_cpus
        self._check = check
        self._started = False

    def start(self) -> None:
        """Join the cluster of RAY_ADDRESS, or start Ray on this machine's loopback; do nothing where Ray runs already.

        Raises:
            InputError: the cluster's Ray or Python has another version, it refuses our token, or it does not
                have what the study asks for.
            TransientError: no cluster answers.
        """
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if not on_cluster():
            os.environ.setdefault(_LOOPBACK, "0")
        import ray

        if ray.is_initialized():
            return
        self._started = True
        if on_cluster():
            _join()
        else:
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
            ray.init(
                address="local",
                num_cpus=self._num_cpus,
                include_dashboard=self._dashboard,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
            close_token_file(Path("~/.ray/auth_token").expanduser())
        # The first use of the context configures ray.data's loggers, so their levels are set after it
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        logging.getLogger("ray.train").setLevel(logging.WARNING)
        if self._check is not None:
            self._check(nodes())

    def stop(self) -> None:
        """Shut down what start() started."""
        if self._started:
            import ray

            ray.shutdown()


def close_token_file(path: Path) -> None:
    """Let only its owner read a token file, because a local Ray makes one that every user of the machine can read.

    Args:
        path: the file; one that is not there, or belongs to another user, is left unchanged.
    """
    if path.is_file() and path.stat().st_uid == os.getuid():
        path.chmod(0o600)


def _join() -> None:
    """Join the cluster of RAY_ADDRESS; raises as RaySession.start does."""
    import ray
    from ray.exceptions import AuthenticationError

    address = os.environ["RAY_ADDRESS"]
    if "://" in address and not address.startswith("ray://"):
        remedy = "name the cluster's own address, host:6379, or submit a job"
        raise InputError(f"RAY_ADDRESS={address}: is the address of the Jobs API: {remedy}")
    tokens = "with token authentication, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH must be set here too"
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as error:
        raise InputError(f"RAY_ADDRESS={address}: {one_line_of(error)}: {tokens}") from None
    except ConnectionError as error:
        reason = f"no cluster answers ({one_line_of(error)})"
        raise TransientError(f"RAY_ADDRESS={address}: {reason}: is it up? {tokens}") from None
    except RuntimeError as error:
        if not str(error).startswith("Version mismatch"):
            raise
        remedy = "install the cluster's versions here, or run the job on the cluster"
        raise InputError(f"RAY_ADDRESS={address}: {one_line_of(error)}: {remedy}") from None
