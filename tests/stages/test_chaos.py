"""A driver that is killed again and again, with all its processes, at any time."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from studies import REPOSITORY, TINY, Job

pytestmark = pytest.mark.slow


def test_a_study_killed_anywhere_ends_with_the_table_of_an_undisturbed_one(
    tiny_store: Path, tmp_path: Path, private_home: dict[str, str], job: Job
) -> None:
    store = tmp_path / "store"
    arguments = [str(TINY), f"store.root={store}", "compute.state_seconds=0"]
    command = [sys.executable, str(REPOSITORY / "jobs" / "sweep.py"), *arguments]
    for seconds in (6, 12, 18, 25, 32, 40):
        process = subprocess.Popen(
            command, env=private_home, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(Path(private_home["HOME"]) / "ray", ignore_errors=True)
    done = job("sweep.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    report = Path("report") / "tiny" / "results.csv"
    assert (store / report).read_bytes() == (tiny_store / report).read_bytes()
