"""A raylet that dies ends the driver with one line and exit code 75."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from chexseg_ray.cluster.raylet import RayletWatch, agents_of, pid_of_raylet


def sleeping(*arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *arguments])
    while not Path(f"/proc/{process.pid}/cmdline").read_bytes():  # for a moment after exec
        time.sleep(0.001)
    return process


def test_a_raylet_is_found_by_its_socket_and_missed_when_it_dies() -> None:
    raylet = sleeping("--raylet_socket_name=/tmp/x/raylet")
    try:
        assert pid_of_raylet("/tmp/x/raylet") == raylet.pid
        assert pid_of_raylet("/tmp/x/rayle") is None
        died = threading.Event()
        watch, other = RayletWatch(raylet.pid, died.set), RayletWatch(os.getpid(), died.set)
        assert not died.wait(1)
        raylet.kill()  # a zombie until wait()
        assert died.wait(10)
        watch.stop()
        other.stop()
    finally:
        raylet.kill()
        raylet.wait()


def test_a_watch_that_was_stopped_ends_nothing() -> None:
    raylet, died = sleeping(), threading.Event()
    watch = RayletWatch(raylet.pid, died.set)
    watch.stop()
    raylet.kill()
    raylet.wait()
    assert not died.wait(1)


def test_the_driver_of_a_dead_raylet_ends_with_75_and_one_line(tmp_path: Path) -> None:
    script = "import sys, time; from chexseg_ray.cluster.raylet import RayletWatch; RayletWatch(int(sys.argv[1]))"
    raylet = sleeping()
    driver = subprocess.Popen(
        [sys.executable, "-c", f"{script}; time.sleep(60)", str(raylet.pid)], stderr=subprocess.PIPE, text=True
    )
    raylet.kill()
    raylet.wait()
    _, stderr = driver.communicate(timeout=30)
    assert driver.returncode == 75
    assert stderr.startswith("error: Ray's node process (raylet) has died")
    assert stderr.count("\n") == 1


def test_the_driver_ends_too_when_an_agent_of_the_raylet_dies() -> None:
    agent = "import time; time.sleep(60)"
    raylet = subprocess.Popen(["bash", "-c", f"exec -a ray::DashboardAgent {sys.executable} -c '{agent}' & wait"])
    died = threading.Event()
    watch = RayletWatch(raylet.pid, died.set)
    try:
        deadline = time.monotonic() + 20
        while not agents_of(raylet.pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (child,) = agents_of(raylet.pid)
        assert not died.wait(1)
        os.kill(child, signal.SIGKILL)
        assert died.wait(10)
    finally:
        watch.stop()
        raylet.kill()
        raylet.wait()
