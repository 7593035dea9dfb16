"""Ray for a study: one on this machine's loopback, or the cluster of RAY_ADDRESS."""

import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chexseg_ray.cluster.machine import close_token_file, ray_folder, refuse_no_shared_memory, token_file
from chexseg_ray.cluster.nodes import nodes, one_line_of
from chexseg_ray.cluster.raylet import RayletWatch, pid_of_raylet
from chexseg_ray.errors import InputError, Stopped, TransientError, listen
from chexseg_ray.plan.demand import Node

# Ray reads these when it is imported
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # trainings in the dashboard
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # what matters comes as an exception
    "RAY_AIR_NEW_OUTPUT": "0",  # else Tune prints tables at verbose=0
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # else Tune takes Ctrl-C for the end of the trials
}

# Unless this is 0, Ray replaces 127.0.0.1 by the address of this machine's first network card and listens there. Ray's
# name for it comes from the systems whose firewalls then ask the user.
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def on_cluster() -> bool:
    """Whether there is a cluster to join: RAY_ADDRESS is set, which Ray does in a submitted job."""
    return bool(os.environ.get("RAY_ADDRESS"))


# What Ray prints as the value of RAY_BACKEND_LOG_LEVEL is read, in every run and whatever the value, and on a machine
# without a way to the internet
_NO_NEWS = (b"Set ray log level from environment variable", b"Failed to determine local IP via external connectivity")

_JOIN_SECONDS = 25.0  # a healthy cluster is joined in 3
_TOKENS = "with token authentication, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH must be set here too"


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
        self._watch: RayletWatch | None = None
        self._token: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> None:
        """Join the cluster of RAY_ADDRESS, or start Ray on this machine's loopback; do nothing where Ray runs already.

        Raises:
            InputError: the cluster's Ray or Python has another version, it refuses our token, it does not have what
                the study asks for, or this machine has no folder or shared memory for Ray.
            TransientError: no cluster answers, or Ray does not start.
            Stopped: SIGTERM came while Ray started.
        """
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if not on_cluster():
            os.environ.setdefault(_LOOPBACK, "0")
        import ray

        if ray.is_initialized():
            return
        self._started = True
        try:
            with _filtered_stderr() as terminal:
                if on_cluster():
                    _join(terminal)
                else:
                    self._start_here()
        except SystemExit:  # Ray's handler, which is in place while it starts
            raise Stopped(signal.SIGTERM) from None
        finally:
            listen()
        worker: Any = ray._private.worker.global_worker  # no public name for the socket
        pid = pid_of_raylet(worker.node.raylet_socket_name)
        self._watch = RayletWatch(pid) if pid else None
        # The first use of the context configures ray.data's loggers, so their levels are set after it
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised too
        logging.getLogger("ray.train").setLevel(logging.WARNING)
        if self._check is not None:
            self._check(nodes())

    def _start_here(self) -> None:
        """Start a Ray of this machine; raises as start()."""
        refuse_no_shared_memory()
        folder = ray_folder()
        self._token = token_file()
        import ray

        try:
            ray.init(
                address="local",
                num_cpus=self._num_cpus,
                include_dashboard=self._dashboard,
                _node_ip_address="127.0.0.1",
                _temp_dir=folder,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
            )
        except Exception as error:  # Ray raises Exception itself when a process of its own does not answer
            remedy = "see its logs below RAY_TMPDIR or /tmp/ray, check memory and disk, then run again"
            raise TransientError(f"Ray does not start ({one_line_of(error)}): {remedy}") from None
        close_token_file(Path("~/.ray/auth_token").expanduser())

    def stop(self) -> None:
        """Shut down what start() started."""
        if self._watch is not None:
            self._watch.stop()
        if self._started:
            import ray

            ray.shutdown()
        if self._token is not None:
            self._token.cleanup()
            del os.environ["RAY_AUTH_TOKEN_PATH"]
            self._token = None


@contextmanager
def _filtered_stderr() -> Iterator[int]:
    """Hold back what the block, and Ray's native code in it, prints on the error stream; print it at the end.

    Lines without news are left out; after an error, which says what is wrong, all are.

    Yields:
        A file descriptor of the error stream itself.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        failed = True
        try:
            yield terminal
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            lines = [] if failed else [line for line in held.readlines() if not any(text in line for text in _NO_NEWS)]
            os.write(2, b"".join(lines))


@contextmanager
def ray_works() -> Iterator[None]:
    """Turn the errors that Ray raises when its own processes or nodes are lost into a transient one.

    Raises:
        TransientError: the block raises one of them.
    """
    from ray import exceptions as ray_errors

    try:
        yield
    except ray_errors.RayTaskError:  # an error of a task itself
        raise
    except (
        ray_errors.LocalRayletDiedError,
        ray_errors.NodeDiedError,
        ray_errors.ObjectLostError,
        ray_errors.OutOfMemoryError,
        ray_errors.RayActorError,
        ray_errors.RaySystemError,
        ray_errors.RpcError,
        ray_errors.WorkerCrashedError,
        ConnectionError,
    ) as error:
        raise TransientError(f"Ray lost a process or node ({one_line_of(error)}): run again") from error


def _join(terminal: int) -> None:
    """Join the cluster of RAY_ADDRESS; raises as RaySession.start does. `terminal` is the error stream's descriptor."""
    import ray
    from ray.exceptions import AuthenticationError

    address = os.environ["RAY_ADDRESS"]
    if "://" in address and not address.startswith("ray://"):
        remedy = "name the cluster's own address, host:6379, or submit a job"
        raise InputError(f"RAY_ADDRESS={address}: is the address of the Jobs API: {remedy}")
    _refuse_dead(address)
    too_late = threading.Timer(_JOIN_SECONDS, _end_unjoined, [terminal, address])
    too_late.start()
    try:
        ray.init(log_to_driver=False, logging_level=logging.CRITICAL)
    except AuthenticationError as error:
        raise InputError(f"RAY_ADDRESS={address}: {one_line_of(error)}: {_TOKENS}") from None
    except ConnectionError as error:
        raise _no_answer(address, f"({one_line_of(error)})") from None
    except RuntimeError as error:
        if not str(error).startswith("Version mismatch"):
            raise
        remedy = "install the cluster's versions here, or run the job on the cluster"
        raise InputError(f"RAY_ADDRESS={address}: {one_line_of(error)}: {remedy}") from None
    finally:
        too_late.cancel()


def _no_answer(address: str, details: str) -> TransientError:
    return TransientError(f"RAY_ADDRESS={address}: no cluster answers {details}: is it up? {_TOKENS}")


def _refuse_dead(address: str) -> None:
    """Raise TransientError if nothing listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        return  # `auto`: Ray looks for the address
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _no_answer(address, f"({one_line_of(error)})") from None


def _end_unjoined(terminal: int, address: str) -> None:
    """End the process, because Ray still tries to join a cluster that does not answer, and cannot be told to stop."""
    error = _no_answer(address, f"within {_JOIN_SECONDS:.0f} s")
    os.write(terminal, f"error: {error}\n".encode())
    os._exit(error.exit_code)
