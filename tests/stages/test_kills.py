"""Studies whose processes are stopped or killed: signals, an actor in its batch, a trial (faults.md 19, 23, 31, 36).

Each test starts the tiny study as a user does, in a Ray folder of its own, on a store that lacks a few steps.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import kill_marked, marked
from studies import REPOSITORY, TINY, the_error

from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store

pytestmark = pytest.mark.ray

RESULTS = Path("report") / "tiny" / "results.csv"
SECONDS_TO_STOP = 30.0
OF_RAYS_LOGGER = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+ [WI] \d+ \d+\] \w+\.cc:\d+: ")


def without_rays_lines(error: str) -> str:
    """Leave out what Ray's C++ logger writes on a machine without a network."""
    return "".join(line for line in error.splitlines(keepends=True) if not OF_RAYS_LOGGER.match(line))


class Run:
    """jobs/sweep.py in a Ray folder of its own.

    Args:
        store: its store.
        words: more of its command line.
        changes: of its environment; None takes a variable out.
    """

    def __init__(self, store: Path, *words: str, **changes: str | None) -> None:
        self.folder = tempfile.mkdtemp(prefix="cx")  # short: Ray's sockets lie below
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        env |= {"HOME": self.folder, "RAY_TMPDIR": self.folder, "PYTHONPATH": str(REPOSITORY)}
        env = {k: v for k, v in {**env, **changes}.items() if v is not None}
        self.process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "jobs" / "sweep.py"), str(TINY), f"store.root={store}", *words],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def until(self, is_there: Callable[[], object], seconds: float = 240) -> None:
        """Wait until something is there while the study runs."""
        deadline = time.monotonic() + seconds
        while not is_there():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def ended(self, seconds: float = 300) -> tuple[int, str, str]:
        """Wait for its end; returns exit code, output and errors."""
        out, error = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, without_rays_lines(error)

    def pids(self, *words: bytes) -> list[int]:
        """Its processes, the driver too; with words, those of Ray that work on something that has one in its name."""
        found = []
        for pid in marked(f"RAY_TMPDIR={self.folder}"):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if not words or (line.startswith(b"ray::") and any(word in line for word in words)):
                found.append(pid)
        return found

    def end(self) -> None:
        """End what is left of it."""
        kill_marked(f"RAY_TMPDIR={self.folder}")
        self.process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def run() -> Iterator[Callable[..., Run]]:
    """Start studies; what is left of them ends with the test."""
    started: list[Run] = []

    def start(store: Path, *words: str, **changes: str | None) -> Run:
        started.append(Run(store, *words, **changes))
        return started[-1]

    yield start
    for one in started:
        one.end()


def records(store: Path, name: str) -> list[Record]:
    return [Record.from_json(path.read_bytes()) for path in sorted(store.glob(f"{name}/*/record.json"))]


def leave_out(store: Path, *steps: str, trials: tuple[int, ...] = (1,)) -> None:
    """Take shared steps out of a store, by name, and the evaluations of trials.

    The step `segmentation` is that of the same trials; `classifier` is the one whose encoder begins the trainings.
    """
    trained = {r.fingerprint: r for r in records(store, "segmentation") if r.config["trial"] in trials}
    gone = [r for r in records(store, "evaluation") if r.inputs["segmentation"] in trained]
    for name in steps:
        if name == "segmentation":
            gone += trained.values()
        else:
            gone += [r for r in records(store, name) if r.config.get("architecture") in (None, "resnet18")]
    for record in gone:
        shutil.rmtree(store / record.address)


def states_of(store: Path, name: str) -> list[Path]:
    return [path for path in store.glob(f"{name}/*/state/0*") if path.suffix != ".tmp"]


def parts_of(store: Path, name: str) -> list[Path]:
    return [path for path in store.glob(f"{name}/*/*/**/part-*.parquet") if path.suffix != ".tmp"]


def stop(study: Run, number: signal.Signals, kept: str) -> None:
    """Send a study a signal, and check its end: code, lines, and that no process of it is left within 30 s."""
    study.process.send_signal(number)
    start = time.monotonic()
    code, _, error = study.ended(SECONDS_TO_STOP)
    assert code == 128 + number, error
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert the_error(error) == f"error: stopped by {name}"
    what, go_on = error.splitlines()[1:]
    assert kept in what
    assert go_on.startswith("to go on: python ")
    while study.pids():
        assert time.monotonic() - start < SECONDS_TO_STOP, study.pids()
        time.sleep(0.1)


def goes_on(study: Run, store: Path, undisturbed: Path) -> None:
    """Check that the same command ends with the results of an undisturbed study, and has left nothing half done."""
    code, out, error = study.ended()
    assert (code, error) == (0, ""), out
    assert (store / RESULTS).read_bytes() == (undisturbed / RESULTS).read_bytes()
    assert not list(store.rglob("*.tmp"))


def test_an_actor_that_is_killed_in_its_batch_and_ctrl_c_in_the_sweep_lose_nothing(
    store_copy: Path, tiny_store: Path, run: Callable[..., Run]
) -> None:
    """One actor makes two files of CAMs: it is killed as soon as the first is there. Then Ctrl-C, in a trial.

    The command that goes on has a read-only home and a locale without UTF-8, which change nothing.
    """
    leave_out(store_copy, "cams", "segmentation")
    (store_copy / RESULTS).unlink()
    study = run(store_copy, "compute.state_seconds=0")
    study.until(lambda: parts_of(store_copy, "cams"))
    actors = study.pids(b"MapWorker")
    for pid in actors:
        os.kill(pid, signal.SIGKILL)
    assert actors
    assert not list(store_copy.glob("cams/*/record.json")), "it was killed before its end"
    study.until(lambda: states_of(store_copy, "segmentation"))
    stop(study, signal.SIGINT, "shared steps and 1 of 2 trainings are kept")

    (made,), (before,) = records(store_copy, "cams"), records(tiny_store, "cams")
    assert made.attempt != before.attempt
    assert [(f.path, f.sha256) for f in made.files] == [(f.path, f.sha256) for f in before.files]
    store = Store.open(str(store_copy))
    for split in ("weak", "expert_train"):
        (images,) = [r for r in records(store_copy, "images") if r.config["split"] == split]
        ids = store.read_tables(made, f"cams/{split}/", ["cxr_id"]).column("cxr_id").to_pylist()
        assert ids == store.read_tables(images, "images/", ["cxr_id"]).column("cxr_id").to_pylist()
        assert len(ids) == len(set(ids)) > 0
    again = run(store_copy, "compute.state_seconds=0", HOME="/proc", LC_ALL="POSIX", PYTHONUTF8=None)
    goes_on(again, store_copy, tiny_store)


MOMENTS: dict[str, tuple[tuple[str, ...], Callable[[Path], list[Any]]]] = {
    "stage of Ray Data": (("cams",), lambda store: parts_of(store, "cams")),
    "training in the driver": (("classifier",), lambda store: states_of(store, "classifier")),
    "trials": (("segmentation",), lambda store: states_of(store, "segmentation")),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_study_that_is_stopped_anywhere_says_so_and_goes_on(
    moment: str, number: signal.Signals, store_copy: Path, tiny_store: Path, run: Callable[..., Run]
) -> None:
    steps, begun = MOMENTS[moment]
    leave_out(store_copy, *steps)
    (store_copy / RESULTS).unlink()
    study = run(store_copy, "compute.state_seconds=0")
    study.until(lambda: begun(store_copy))
    stop(study, number, "shared steps and 1 of 2 trainings are kept")
    goes_on(run(store_copy, "compute.state_seconds=0"), store_copy, tiny_store)


@pytest.mark.slow
def test_a_trial_that_is_killed_fails_alone_and_the_next_run_trains_it(
    store_copy: Path, tiny_store: Path, run: Callable[..., Run]
) -> None:
    """SIGKILL is what the system sends a process for its memory."""
    leave_out(store_copy, "segmentation", trials=(0, 1))
    study = run(store_copy, "compute.max_failures=0", "compute.state_seconds=0")
    study.until(lambda: len({path.parent for path in states_of(store_copy, "segmentation")}) == 2)
    trials = study.pids(b"ImplicitFunc")
    assert trials
    os.kill(trials[0], signal.SIGKILL)
    code, out, error = study.ended()
    assert (code, error) == (3, ""), out
    assert out.count("failed: gradcam p=0.5") == 1
    assert "its process ended" in out
    assert "1 of 2 trainings failed; to try them again: python " in out
    page = (store_copy / "report" / "tiny" / "index.html").read_text()
    assert "1 of 2 points" in page
    assert "(1 trial)" in page, "n, and no interval of one trial"
    assert '"interval": ""' not in page
    assert (store_copy / RESULTS).read_bytes() != (tiny_store / RESULTS).read_bytes()
    assert run(store_copy).ended()[0] == 0
    assert (store_copy / RESULTS).read_bytes() == (tiny_store / RESULTS).read_bytes()


def on_a_small_disk(folder: Path, size: str) -> list[str]:
    """What runs a command where `folder` is an empty disk of some size; nothing where that is not allowed."""
    script = f'mount -t tmpfs -o size={size} tmpfs {folder} && exec "$@"'
    command = ["unshare", "-m", *(["-r"] if os.getuid() else []), "sh", "-c", script, "sh"]
    try:
        works = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        works = False
    return command if works else []


@pytest.mark.parametrize(
    ("size", "data"),
    [
        ("16k", True),
        pytest.param("1m", False, marks=pytest.mark.slow),
        pytest.param("3m", False, marks=pytest.mark.slow),
    ],
    ids=["manifests", "phantom", "images or weights"],
)
def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    size: str, data: bool, phantom_root: Path, tmp_path: Path, private_home: dict[str, str]
) -> None:
    """On a disk of its own. Where none may be mounted, a limit on the size of a file stands for it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = on_a_small_disk(disk, size)
    if not mount:
        mount = ["sh", "-c", 'ulimit -f 8; trap "" XFSZ; exec "$@"', "sh"]
    root = [f"data.root={phantom_root}"] if data else []
    job = [sys.executable, str(REPOSITORY / "jobs" / "sweep.py"), str(TINY), f"store.root={disk}/store", *root]
    look = "import os, subprocess, sys\ndone = subprocess.run(sys.argv[2:])\n"
    look += "left = [f for _, _, files in os.walk(sys.argv[1]) for f in files]\n"
    look += "print('left', *left)\nsys.exit(done.returncode)"
    done = subprocess.run(
        [*mount, sys.executable, "-c", look, str(disk), *job],
        env=private_home,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 75, done.stdout + done.stderr
    assert "cannot be written" in the_error(without_rays_lines(done.stderr))
    assert "No space left on device" in done.stderr or "File too large" in done.stderr
    left = done.stdout.splitlines()[-1].split()
    assert left[0] == "left"
    assert not [name for name in left if name.endswith(".tmp")]
