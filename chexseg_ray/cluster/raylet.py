"""Watches this node's raylet and its agents: when one dies, Ray itself ends the driver with exit code 1 and no word.

The raylet ends itself when an agent of it dies, and the driver ends a moment before the raylet.
"""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from chexseg_ray.cluster.guardian import LOST, is_guarded
from chexseg_ray.cluster.machine import has_ended

_SECONDS = 0.3  # between two looks, less than Ray takes to end the driver
_AGENTS = (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")  # how they call themselves


def pid_of_raylet(socket: str, proc: Path = Path("/proc")) -> int | None:
    """Find the process of a raylet.

    Args:
        socket: the path of its socket, which is in its command line.
        proc: where the system lists processes.

    Returns:
        Its process id; None if no such process runs.
    """
    wanted = f"--raylet_socket_name={socket}".encode()
    for path in proc.glob("[0-9]*/cmdline"):
        try:
            if wanted in path.read_bytes().split(b"\0"):
                return int(path.parent.name)
        except OSError:  # it has just ended
            continue
    return None


def agents_of(pid: int) -> set[int]:
    """Find the agents that a raylet has started, without which it ends.

    Args:
        pid: of the raylet.

    Returns:
        Their process ids; none where the system does not list the children of a process.
    """
    found = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in path.read_text().split()]
        except OSError:  # the thread has just ended
            continue
        for child in children:
            try:
                name = Path(f"/proc/{child}/cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(_AGENTS):
                found.add(child)
    return found


class RayletWatch:
    """A thread that ends the driver with exit code 75 and one line when its node's raylet or an agent of it has died.

    Args:
        pid: of the raylet.
        end: called then; does not return.
    """

    def __init__(self, pid: int, end: Callable[[], None] | None = None) -> None:
        self._pid, self._end = pid, end or _end_driver
        self._agents: set[int] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch, before Ray is shut down."""
        self._over.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._over.wait(_SECONDS):
            ended = has_ended(self._pid) or any(map(has_ended, self._agents))
            if len(self._agents) < len(_AGENTS):
                self._agents |= agents_of(self._pid)
            if ended and not self._over.is_set():
                self._end()
                return


def _end_driver() -> None:
    sys.stdout.flush()
    if is_guarded():
        os._exit(1)  # as Ray does: the guardian says what happened, and what is kept
    os.write(2, f"error: {LOST}\n".encode())
    os._exit(75)
