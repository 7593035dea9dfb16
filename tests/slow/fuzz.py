"""Reads damaged files by every reader, each in a process of its own with bounded memory and time, and keeps the faults.

A damaged file is a function of (reader, seed, number). Run as a script, this file reads kept ones again, whose names
begin with that of their reader:

    PYTHONPATH=.:tests python tests/slow/fuzz.py FILE ...
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
MOST_WALL_SECONDS = 90.0  # for one file, after which its process is killed; the machine may be loaded
MOST_KEPT = 20  # faults of one reader
GOOD = ("accepted", "none", "refused")


@dataclass
class Found:
    """What came of the damaged files of one reader.

    Args:
        reader: its name.
        outcomes: numbers of files by outcome: accepted, none, refused.
        faults: (number of the file, what it did, the file) of those that did anything else.
        seconds: that it took.
        peak: most megabytes of memory beyond what the process had at its start.
    """

    reader: str
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str, bytes]] = field(default_factory=list)
    seconds: float = 0.0
    peak: float = 0.0

    @property
    def files(self) -> int:
        """Number of files that were read."""
        return sum(self.outcomes.values()) + len(self.faults)

    def line(self) -> str:
        """The numbers, for people."""
        outcomes = ", ".join(f"{what} {number}" for what, number in sorted(self.outcomes.items()))
        text = f"{self.reader:<11} {self.files:>7} files in {self.seconds:5.1f} s, {outcomes}, +{self.peak:.0f} MB"
        return text + (f", FAULTS {len(self.faults)}" if self.faults else "")


def damaged_file(reader: Any, name: str, seed: int, number: int) -> bytes:
    """The damaged file of a number; the first ones are the valid files."""
    from slow.mutations import damaged

    if number < len(reader.seeds):
        seed_file: bytes = reader.seeds[number]
        return seed_file
    return damaged(reader.seeds, random.Random(f"{name}-{seed}-{number}"))


def outcome_of(reader: Any, data: bytes) -> str:
    """Read a file: `accepted`, `none`, `refused`, or what else it did."""
    from slow.readers import REFUSALS, check_message

    start = time.process_time()
    try:
        try:
            out: str = reader.read(data)
        except REFUSALS as error:
            check_message(error)
            out = "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in where if "chexseg_ray" in frame.filename] or where
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].name}"
        return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:300]}"
    seconds = time.process_time() - start
    return out if seconds <= reader.most_seconds else f"took {seconds:.0f} s of CPU"


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read_many(name: str, seed: int, first: int, most: int, end: float, folder: Path) -> None:
    """Be the process of one reader: read files from number `first` on until the time is `end`, and tell of them."""
    from slow.readers import READERS

    warnings.simplefilter("error")  # as in the tests: a warning is a line on a user's terminal
    folder.joinpath("work").mkdir()
    reader = READERS[name](folder / "work")
    for number, data in enumerate(reader.seeds):  # also loads what is imported late
        outcome = outcome_of(reader, data)
        if first == 0:
            is_good = outcome == ("accepted" if number < reader.valid else outcome)
            _tell(folder, number, outcome if is_good else f"a valid file: {outcome}", data)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + reader.most_memory, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before, number = _resident(), max(first, len(reader.seeds))
    current = os.open(folder / "current", os.O_CREAT | os.O_RDWR)
    while number < most and time.time() < end:
        data = damaged_file(reader, name, seed, number)
        os.ftruncate(current, 0)
        os.pwrite(current, f"{number:<12}".encode() + data, 0)
        _tell(folder, number, outcome_of(reader, data), data, _resident() - before)
        number += 1


def _tell(folder: Path, number: int, outcome: str, data: bytes, peak: float = 0.0) -> None:
    """Write down what came of a file, and the file itself where it is a fault."""
    if outcome not in GOOD:
        (folder / f"fault-{number}").write_bytes(data)
    print(json.dumps([number, outcome, peak]), flush=True)


def fuzz(name: str, seed: int, seconds: float, most: int = 10**9) -> Found:
    """Read damaged files of one reader in processes of their own.

    Args:
        name: of the reader.
        seed: of the files.
        seconds: after which no more are read.
        most: files to read.
    """
    found, start = Found(name), time.monotonic()
    first = 0
    while True:
        left = seconds - (time.monotonic() - start)
        if (left <= 0 and first) or first >= most or len(found.faults) >= MOST_KEPT:
            break
        with tempfile.TemporaryDirectory(prefix="cxfuzz") as folder:
            last, ended, data = _one_process(found, Path(folder), seed, first, most, max(left, 1.0))
        if not ended:
            break
        found.faults.append((last, ended, data))
        first = last + 1
    found.seconds = time.monotonic() - start
    return found


def _one_process(
    found: Found, folder: Path, seed: int, first: int, most: int, seconds: float
) -> tuple[int, str, bytes]:
    """Run one process; returns its last file: number, how the process died (empty where it did not), bytes."""
    code = "import sys; from pathlib import Path; from slow.fuzz import read_many as r; a = sys.argv[1:]; " + (
        "r(a[0], int(a[1]), int(a[2]), int(a[3]), float(a[4]), Path(a[5]))"
    )
    arguments = [found.reader, str(seed), str(first), str(most), str(time.time() + seconds), str(folder)]
    path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "tests")))
    # no network: what tries to connect fails
    env = {**os.environ, "PYTHONPATH": path, "HOME": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    out, current = folder / "out", folder / "current"
    with out.open("wb") as stdout, (folder / "err").open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-c", code, *arguments], env=env, stdout=stdout, stderr=stderr)
        at, since, died = b"", time.monotonic(), ""
        while process.poll() is None:
            time.sleep(0.02)
            now_at = current.read_bytes()[:12] if current.exists() else b""
            if now_at != at:
                at, since = now_at, time.monotonic()
            if time.monotonic() - since > MOST_WALL_SECONDS:
                process.kill()
                died = f"took more than {MOST_WALL_SECONDS:.0f} s"
        process.wait()
    for line in out.read_text().splitlines():
        if not line.endswith("]"):
            continue
        number, outcome, peak = json.loads(line)
        found.peak = max(found.peak, peak)
        if outcome in GOOD:
            found.outcomes[outcome] += 1
        else:
            found.faults.append((number, outcome, (folder / f"fault-{number}").read_bytes()))
    if process.returncode:
        errors = (folder / "err").read_text(errors="replace").strip().splitlines()
        died = died or f"its process ended with {process.returncode}: {' '.join(errors[-2:])[:300]}"
    last = current.read_bytes() if current.exists() else b""
    return int(last[:12] or first), died, last[12:]


def keep(found: Found, seed: int, folder: Path) -> list[str]:
    """Write the files that were faults into a folder; returns a line about each."""
    lines = []
    for number, fault, data in found.faults:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{found.reader.replace(' ', '_')}-{seed}-{number}"
        path.write_bytes(data)
        lines.append(f"{path}: {fault}")
    return lines


def main(files: list[str]) -> None:
    """Read kept files again, and print what comes of each."""
    from slow.readers import READERS

    warnings.simplefilter("error")
    for path in map(Path, files):
        with tempfile.TemporaryDirectory() as folder:
            reader = READERS[path.name.rsplit("-", 2)[0].replace("_", " ")](Path(folder))
            print(f"{path}: {outcome_of(reader, path.read_bytes())}")


if __name__ == "__main__":
    main(sys.argv[1:])
