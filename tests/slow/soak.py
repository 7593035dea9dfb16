"""Watches a study of many short trials from outside: what each of its processes holds, and what is left at the end."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from slow.processes import (
    Process,
    descriptors,
    of_environment,
    resident,
    shared,
    shared_files,
    still_there,
    threads,
    wait_until,
)

# real trainings, as small as they can be: 2 updates of 2 images, an encoder of 0.1 million weights
TINY_TRIALS = [
    "sweep.p=[1.0]",
    "sweep.init=[random]",
    "segmentation.encoder=tu-lcnet_035",
    "segmentation.architecture=linknet",
    "segmentation.num_updates=2",
    "segmentation.num_validations=1",
    "segmentation.batch_size=2",
    "report.bootstrap_replicates=100",
    "report.contrasts=[]",
]
SECONDS_TO_END = 30.0
_TRIALS = "ray::ImplicitFunc"  # how Tune's actors call themselves
_ROLES = {"gcs_server": "gcs", "raylet": "raylet"}


@dataclass(frozen=True)
class Held:
    """What a process holds: memory of its own and shared memory in megabytes, open files, threads."""

    own: float
    shared: float
    files: int
    threads: int


@dataclass
class Soak:
    """Samples of one study.

    Args:
        command: of the job.
        env: its environment, with RAY_TMPDIR and TMPDIR of its own.
        store: its root.
    """

    command: Sequence[str]
    env: Mapping[str, str]
    store: Path
    held: dict[tuple[str, int], list[tuple[int, Held]]] = field(default_factory=dict)
    actors: list[tuple[int, int]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    seconds: float = 0.0
    trials: int = 0
    output: str = ""
    errors: str = ""

    def run(self, every: float) -> int:
        """Run the study, and look at its processes every few seconds; returns its exit code."""
        start, began = time.monotonic(), self._done()
        seen: dict[int, Process] = {}
        memory_files: set[str] = set()
        out, err = (self.store.with_suffix(suffix) for suffix in (".out", ".err"))
        with out.open("wb") as stdout, err.open("wb") as stderr:
            job = subprocess.Popen(
                self.command, env=self.env, cwd=self.env["HOME"], stdout=stdout, stderr=stderr, start_new_session=True
            )
            while job.poll() is None:
                alive = of_environment(f"RAY_TMPDIR={self.env['RAY_TMPDIR']}")
                seen |= {process.pid: process for process in alive}
                memory_files |= {name for process in alive for name in shared_files(process.pid)}
                self._sample(alive, self._done() - began, job.pid)
                time.sleep(every)
        self.seconds, self.trials = time.monotonic() - start, self._done() - began
        self.output, self.errors = out.read_text(), err.read_text()
        wait_until(lambda: not still_there(seen.values()), SECONDS_TO_END)
        self.left = [f"process {process.pid} {process.name}" for process in still_there(seen.values())]
        self.left += [name for name in memory_files if os.path.exists(name)]
        # files, and not folders: importing torch makes torchinductor_USER, which stays empty
        self.left += [str(path) for path in Path(self.env["TMPDIR"]).rglob("*") if not path.is_dir()]
        self.left += [str(path) for path in self.store.rglob("*.tmp")]
        self.left += [str(path) for path in self.store.glob("*/*/state")]
        self.left += [str(path) for path in self.store.glob("*/*/failed.json")]
        return job.returncode

    def _done(self) -> int:
        """Number of trials that are built."""
        return len(list(self.store.glob("evaluation/*/record.json")))

    def _sample(self, alive: Sequence[Process], done: int, guardian: int) -> None:
        for process in alive:
            role = "trials' process" if process.command.startswith(_TRIALS) else _ROLES.get(process.name)
            if "sweep.py" in process.command and process.pid != guardian:
                role = "driver"
            if role:
                pid = process.pid
                held = Held(resident(pid), shared(pid), descriptors(pid), threads(pid))
                self.held.setdefault((role, pid), []).append((done, held))
        self.actors.append((done, sum(process.command.startswith("ray::") for process in alive)))

    def second_half(self, role: str) -> list[tuple[int, list[tuple[int, Held]]]]:
        """The processes of a role that lived through most of the second half of the trials, with samples."""
        found = []
        for (its_role, pid), samples in self.held.items():
            late = [(done, held) for done, held in samples if self.trials / 2 <= done < self.trials and held.own]
            if its_role == role and len(late) > 3 and late[-1][0] - late[0][0] > self.trials / 4:
                found.append((pid, late))
        return found

    def slopes(self, role: str, what: str) -> list[float]:
        """Growth of `own`, `shared`, `files` or `threads` per 1,000 trials, by least squares over the second half.

        One number for each process of the role.
        """
        out = []
        for _, samples in self.second_half(role):
            done, values = zip(*((done, getattr(held, what)) for done, held in samples), strict=True)
            out.append(1000 * float(np.polyfit(done, values, 1)[0]))
        return out

    def most_actors(self) -> tuple[int, int]:
        """The most processes of Ray's workers at once, in the first and in the second half of the trials."""
        first = [number for done, number in self.actors if done < self.trials / 2]
        second = [number for done, number in self.actors if done >= self.trials / 2]
        return max(first, default=0), max(second, default=0)

    def lines(self) -> list[str]:
        """The numbers, for people."""
        lines = [f"{self.trials} trials in {self.seconds:.0f} s"]
        for role in ("driver", "trials' process", "gcs", "raylet"):
            for i, (_, samples) in enumerate(self.second_half(role)):
                first, last = samples[0][1], samples[-1][1]
                slope, files, of_threads = (self.slopes(role, what)[i] for what in ("own", "files", "threads"))
                shown = f"{first.own:.0f} to {last.own:.0f} MB ({slope:+.1f} MB per 1,000 trials)"
                more = f"shared {first.shared:.0f} to {last.shared:.0f} MB"
                files_shown = f"files {first.files} to {last.files} ({files:+.1f})"
                threads_shown = f"threads {last.threads} ({of_threads:+.1f})"
                lines.append(f"  {role:<15} second half: {shown}, {more}, {files_shown}, {threads_shown}")
        first_half, second_half = self.most_actors()
        processes = len([key for key in self.held if key[0] == "trials' process"])
        lines.append(f"  Ray's worker processes: at most {first_half}, then {second_half}; {processes} ran trials")
        folder = Path(self.env["RAY_TMPDIR"])
        files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        size = sum(path.stat().st_size for path in files) / 1e6
        lines.append(f"  left: {', '.join(self.left) or 'nothing'}; Ray's logs: {len(files)} files, {size:.1f} MB")
        return lines
