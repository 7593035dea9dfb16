"""Processes of one Ray, found by their environment: what kind each is, what it holds, and whether any is left."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_ACTORS = ("RayTrainWorker", "TrainController", "ImplicitFunc", "MapWorker", "MapBatches", "_MapWorker")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Process:
    """A living process: its id, when it began (in clock ticks; an id is used again), and its command line."""

    pid: int
    began: str
    command: str

    @property
    def kind(self) -> str:
        """What it is: `raylet`, `actor` (of a training, a trial or CAMs), `worker` (any other of Ray's) or `other`."""
        if re.match(r"\S*/raylet ", self.command):
            return "raylet"
        if not self.command.startswith("ray::"):
            return "other"
        return "actor" if self.command[5:].startswith(_ACTORS) else "worker"

    @property
    def name(self) -> str:
        """What it calls itself, in a few words."""
        words = self.command.split()
        return words[0][:40] if self.command.startswith("ray::") else Path(words[0]).name[:40] if words else "?"

    def lives(self) -> bool:
        """Whether it has not ended; a zombie has."""
        found = _began(self.pid)
        return found == self.began

    def kill(self) -> bool:
        """Kill it by SIGKILL; returns whether it was there."""
        if not self.lives():
            return False
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True


def _began(pid: int) -> str | None:
    """When a process began, in clock ticks; None for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def of_environment(variable: str) -> list[Process]:
    """The living processes that have NAME=value in their environment, and the children of such processes, by id.

    The title that Ray gives its agents overwrites their environment, so they are found as children of the raylet.
    """
    wanted, found, others = variable.encode(), {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            has_it = wanted in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        began = _began(pid)
        if began is not None:
            (found if has_it else others)[pid] = (parent, Process(pid, began, command))
    found |= {pid: (parent, process) for pid, (parent, process) in others.items() if parent in found}
    return [found[pid][1] for pid in sorted(found)]


def still_there(processes: Iterable[Process]) -> list[Process]:
    """Those of some processes that have not ended."""
    return [process for process in processes if process.lives()]


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    """Look every 50 ms whether something is so; returns whether it became so in time."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def resident(pid: int) -> float:
    """Megabytes of memory of a process, without what it shares with others; 0 for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0.0
    return (int(fields[1]) - int(fields[2])) * _PAGE / 1e6


def descriptors(pid: int) -> int:
    """Number of open files of a process; 0 for one that has ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def threads(pid: int) -> int:
    """Number of threads of a process; 0 for one that has ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def shared(pid: int) -> float:
    """Megabytes of shared memory that a process has touched; 0 for one that has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"RssShmem:\s+(\d+) kB", text)
    return int(found[1]) / 1e3 if found else 0.0


def shared_files(pid: int) -> set[str]:
    """The files in /dev/shm that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line.split(maxsplit=5)[5] for line in lines if "/dev/shm/" in line and not line.endswith("(deleted)")}
