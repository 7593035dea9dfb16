"""Kills processes of a study at drawn moments, runs the same command again until it is done, and counts what it cost.

A kind of victim is drawn for each moment: `driver` (the driver process alone), `group` (the driver's process group),
`raylet`, `actor` (a process of a training, a trial or CAMs) or `worker` (any other worker process of Ray). Only
processes whose environment has the study's own RAY_TMPDIR are ever killed.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from slow.processes import Process, of_environment, still_there, wait_until
from studies import REPOSITORY

from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store

KINDS = ("driver", "group", "worker", "actor", "raylet")
MOST_LINES = 3  # on the error stream of one run
SECONDS_TO_END = 30.0  # for what a killed process leaves behind
# Ray's two agents of a node report the death of the raylet to the GCS first, and wait 60 s for a GCS that has died too
AGENTS_SECONDS_TO_END = 75.0
_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
PLACES = ("state", "report", "tensorboard", "record.json")  # where no half-written file may stay


@contextmanager
def own_environment(**more: str) -> Iterator[dict[str, str]]:
    """An environment whose HOME, TMPDIR and RAY_TMPDIR no other run has, and which ends with its folder."""
    folder = tempfile.mkdtemp(prefix="cx")  # short: Ray's sockets lie below
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {name: f"{folder}/{name[:1].lower()}" for name in ("HOME", "TMPDIR", "RAY_TMPDIR")}
    for path in own.values():
        Path(path).mkdir()
    yield env | own | {"PYTHONPATH": str(REPOSITORY)} | more
    shutil.rmtree(folder, ignore_errors=True)


def counting() -> dict[str, str]:
    """More of an environment, with which a study writes down its steps and updates."""
    return {"PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(Path(__file__).parent / "counting")))}


@dataclass(frozen=True)
class Moment:
    """A kind of victim, and the seconds between the last event and its death."""

    kind: str
    seconds: float


def moments(seed: int, number: int, undisturbed: float, kinds: Sequence[str] = KINDS) -> list[Moment]:
    """Draw moments: all kinds equally often, each up to half a study after the last."""
    draw = random.Random(seed)
    order = [kinds[i % len(kinds)] for i in range(number)]
    draw.shuffle(order)
    return [Moment(kind, draw.uniform(0.03, 0.5) * undisturbed) for kind in order]


@dataclass
class Chaos:
    """What happened to the studies of one test.

    Args:
        command: of the job, without its store.
        env: its environment, with a RAY_TMPDIR of its own.
        folder: takes stores, outputs and counts.
        begin: a store in which every study but the first begins; None for nothing.
        plan: of the kills.
    """

    command: Sequence[str]
    env: Mapping[str, str]
    folder: Path
    begin: Path | None = None
    plan: Sequence[Moment] = ()
    kills: list[str] = field(default_factory=list)
    exits: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    last_orphan: tuple[float, str] = (0.0, "none")
    faults: list[str] = field(default_factory=list)
    stores: list[Path] = field(default_factory=list)
    _leaving: list[tuple[float, float, list[Process]]] = field(default_factory=list)  # since when, how long, who
    _runs: int = 0

    def alive(self) -> list[Process]:
        """All living processes of the study."""
        return of_environment(f"RAY_TMPDIR={self.env['RAY_TMPDIR']}")

    def undisturbed(self) -> float:
        """Run the study to its end, as stores[0]; returns the seconds it took."""
        self._finish()
        assert self.exits == {0: 1}, self.faults
        return self.seconds[0]

    def run(self, plan: Sequence[Moment]) -> None:
        """Do all the kills, in as many studies as it takes, and let the last one end."""
        self.plan = plan
        while len(self.kills) < len(plan):
            self._finish()

    def _finish(self) -> None:
        """Run one study to its end, in a new store."""
        store = self.folder / f"store{len(self.stores)}"
        if self.begin and self.stores:
            shutil.copytree(self.begin, store)
        self.stores.append(store)
        start, code = time.monotonic(), None
        while code != 0:
            process = self._start(store)
            self._disturb(process)
            code = process.returncode
            self._end(code)
        self.seconds.append(time.monotonic() - start)
        self._collect(wait=True)

    def _start(self, store: Path) -> "subprocess.Popen[bytes]":
        self._runs += 1
        env = {**self.env, "CHEXSEG_COUNTS": f"{store}.events"}
        with self._output("out").open("wb") as out, self._output("err").open("wb") as err:
            return subprocess.Popen(
                [*self.command, f"store.root={store}"],
                env=env,
                cwd=self.env["HOME"],
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def _output(self, stream: str) -> Path:
        return self.folder / f"run{self._runs:02d}.{stream}"

    def _disturb(self, process: "subprocess.Popen[bytes]") -> None:
        """Kill by the plan until the driver has ended."""
        start = last = time.monotonic()
        while process.poll() is None:
            self._collect()
            moment = self.plan[len(self.kills)] if len(self.kills) < len(self.plan) else None
            now = time.monotonic()
            if moment and now >= last + moment.seconds and self._kill(process, moment.kind, now - start):
                last = now
            time.sleep(0.05)

    def _kill(self, process: "subprocess.Popen[bytes]", kind: str, seconds: float) -> bool:
        """Kill a process of a kind, if there is one."""
        alive = self.alive()
        if kind in ("driver", "group"):
            names = "driver" if kind == "driver" else "driver's group"
            (os.kill if kind == "driver" else os.killpg)(process.pid, signal.SIGKILL)
            process.wait()
        else:
            victims = [victim for victim in alive if victim.kind == kind]
            if not victims:
                return False
            victim = random.Random(len(self.kills)).choice(victims)
            names = victim.name
            if not victim.kill():
                return False
        if kind in ("driver", "group", "raylet"):
            others = [other for other in alive if other.pid != process.pid]
            for most, are_agents in ((SECONDS_TO_END, False), (AGENTS_SECONDS_TO_END, True)):
                part = [other for other in others if (other.name in _AGENTS) == are_agents]
                self._leaving.append((time.monotonic(), most, part))
        self.kills.append(f"{kind}: {names} {seconds:.1f} s after the start of run {self._runs}")
        return True

    def _collect(self, wait: bool = False) -> None:
        """Look which of the processes that a kill has orphaned still live; `wait` waits until none does."""
        for item in [*self._leaving]:
            killed, most, orphans = item
            if wait:
                wait_until(lambda orphans=orphans: not still_there(orphans), killed + most - time.monotonic())
            left, since = still_there(orphans), time.monotonic() - killed
            self._leaving.remove(item)
            if left and since < most:
                self._leaving.append((killed, most, left))
                continue
            self.last_orphan = max(self.last_orphan, (since, ", ".join(orphan.name for orphan in orphans)))
            if left:
                names = ", ".join(f"{orphan.pid} {orphan.name}" for orphan in left)
                self.faults.append(f"{since:.0f} s after a kill there are still {names}")

    def _end(self, code: int) -> None:
        """Note how a run ended, and what it must not print."""
        self.exits[code] += 1
        if code not in (0, 3, 75, -signal.SIGKILL):
            self.faults.append(f"run {self._runs} ended with {code}")
        text = self._output("err").read_text(errors="replace")
        if len(text.splitlines()) > MOST_LINES or "Traceback" in text:
            self.faults.append(f"run {self._runs} (exit {code}) printed on the error stream:\n{text}")
        if code == 75 and not text.startswith("error: "):
            self.faults.append(f"run {self._runs} (exit {code}) printed no error: {text!r}")
        if "Traceback" in self._output("out").read_text(errors="replace"):
            self.faults.append(f"run {self._runs} (exit {code}) printed a traceback")

    def events(self, store: Path) -> list[list[str]]:
        """What the processes of a store's runs wrote down: see counting/sitecustomize.py."""
        return [line.split("\t") for line in Path(f"{store}.events").read_text().splitlines()]

    def repeated(self) -> dict[str, int]:
        """Work that the kills made necessary again, summed over all but the first store."""
        out = {"steps begun again": 0, "finished steps built again": 0, "updates done again": 0, "updates": 0}
        for store in self.stores[1:]:
            events = self.events(store)
            begun, built = (Counter(where for what, where, *_ in events if what == kind) for kind in ("begun", "built"))
            updates = Counter(
                (where, number) for what, where, *number_ in events if what == "update" for number in number_
            )
            out["steps begun again"] += sum(begun.values()) - len(begun)
            out["finished steps built again"] += sum(built.values()) - len(built)
            out["updates done again"] += sum(updates.values()) - len(updates)
            out["updates"] += len(updates)
        return out

    def lines(self) -> list[str]:
        """The numbers, for people."""
        kinds = Counter(kill.split(":")[0] for kill in self.kills)
        lost = [seconds - self.seconds[0] for seconds in self.seconds[1:]]
        each = sum(lost) / max(len(self.kills), 1)
        return [
            f"{len(self.kills)} kills in {len(self.stores) - 1} studies: "
            + ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items())),
            *(f"  {kill}" for kill in self.kills),
            "exit codes of all runs: " + ", ".join(f"{code}: {number}" for code, number in sorted(self.exits.items())),
            "again: " + ", ".join(f"{what} {number}" for what, number in self.repeated().items()),
            f"undisturbed {self.seconds[0]:.0f} s; lost {sum(lost):.0f} s, {each:.1f} s per kill",
            f"the last processes that a kill had orphaned were gone after {self.last_orphan[0]:.1f} s: "
            + self.last_orphan[1],
            *(f"FAULT: {fault}" for fault in self.faults),
        ]


def check(chaos: Chaos) -> None:
    """Nothing is lost, changed or left, and nothing but one error was printed."""
    expected = made(chaos.stores[0])
    for store in chaos.stores[1:]:
        found = made(store)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []
        assert half_written(store) == []
    assert chaos.faults == []
    assert chaos.alive() == []
    assert chaos.repeated()["finished steps built again"] == 0


def made(root: Path) -> dict[str, object]:
    """What a store holds, by address, as far as it must be equal in every run; compares the bytes with the records."""
    store, out = Store.open(str(root)), {}
    for path in sorted(root.glob("*/*/record.json")):
        record = Record.from_json(path.read_bytes())
        for entry in record.files:
            data = (root / record.address / record.attempt / entry.path).read_bytes()
            assert hashlib.sha256(data).hexdigest() == entry.sha256, f"{record.address}: {entry.path}"
        files = [[entry.path, entry.size, entry.sha256] for entry in record.files]
        config, metrics = (json.dumps(part, sort_keys=True) for part in (record.config, record.metrics))
        out[record.address] = [files, record.rows, record.rejects, config, metrics, sorted(record.inputs.items())]
        assert store.find_address(record.address) is not None
    for path in sorted((root / "report").rglob("*.csv")):
        out[str(path.relative_to(root))] = path.read_bytes()
    return out


def half_written(root: Path) -> list[str]:
    """Temporary files of a finished store where a later run would have had to remove them."""
    found = []
    for path in root.rglob("*.tmp"):
        parts = path.relative_to(root).parts
        if any(part.startswith(PLACES) for part in parts):
            found.append(str(path.relative_to(root)))
    return found


def orphan_attempts(root: Path) -> tuple[int, int]:
    """How many attempts of a store no record names, and their bytes."""
    number = size = 0
    for record in root.glob("*/*/record.json"):
        for folder in record.parent.iterdir():
            if folder.is_dir() and folder.name != json.loads(record.read_text())["attempt"]:
                number += 1
                size += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return number, size


def sweep_command(config: Path, *overrides: str) -> list[str]:
    """The command line of a study, without its store."""
    return [sys.executable, str(REPOSITORY / "jobs" / "sweep.py"), str(config), *overrides]
