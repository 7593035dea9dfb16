"""Memory of a whole study for ten times the images (faults.md 32)."""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from clusters import kill_marked, marked
from studies import REPOSITORY, TINY

pytestmark = pytest.mark.slow

IMAGES = {"num_train_patients": 16, "num_expert_images": 16, "num_test_images": 6}
# the phases of a study with a trial, of which none may grow with the images
GRID = ("sweep.init=[random]", "sweep.trials=1", "data.benchmark_masks=null")


def peak_kilobytes(pid: int) -> int:
    """The most memory that a process has had so far, without what it shares with Ray's object store."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", status, re.MULTILINE))
    return int(found.get("RssAnon", 0)) + int(found.get("RssFile", 0))


def peaks(store: Path, env: dict[str, str], times: int) -> dict[str, int]:
    """Run the study on phantoms, and return the peaks of its driver and of the largest worker of each kind, in kB."""
    folder = tempfile.mkdtemp(prefix="cx")  # short: Ray's sockets lie below
    sizes = [f"data.phantom.{name}={number * times}" for name, number in IMAGES.items()]
    command = [sys.executable, str(REPOSITORY / "jobs" / "sweep.py"), str(TINY), f"store.root={store}", *GRID, *sizes]
    mark = env | {"RAY_TMPDIR": folder, "HOME": folder}
    found: dict[str, int] = {}
    process = subprocess.Popen(command, env=mark, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while process.poll() is None:
            for pid in marked(f"RAY_TMPDIR={folder}"):
                kind = worker_kind(pid)
                found[kind] = max(found.get(kind, 0), peak_kilobytes(pid))
            time.sleep(0.05)
        assert process.returncode == 0, process.communicate()
    finally:
        process.kill()
        process.communicate()
        kill_marked(f"RAY_TMPDIR={folder}")
    return found


def worker_kind(pid: int) -> str:
    """What a worker of Ray does now, without arguments, or `driver`; Ray's own processes are all `Ray`."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return "Ray"
    if "sweep.py" in line:
        return "driver"
    return re.split(r"[\0 (]", line)[0] if line.startswith("ray::") else "Ray"


def test_ten_times_the_images_take_no_more_memory(tmp_path: Path, private_home: dict[str, str]) -> None:
    few = peaks(tmp_path / "few", private_home, 1)
    many = peaks(tmp_path / "many", private_home, 10)
    for kind in sorted(few.keys() & many.keys()):
        print(f"{kind}: {few[kind] / 1024:.0f} MB, {many[kind] / 1024:.0f} MB with ten times the images")
    assert many["driver"] < 1.1 * few["driver"]
    assert max(many.values()) < 1.1 * max(few.values())
