"""A Ray that a driver starts on this machine: signals, token, raylet, and homes that cannot be used."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import kill_marked, marked

from chexseg_ray.cluster.guardian import LOST

pytestmark = pytest.mark.ray

# A job of this package as far as Ray is concerned: it starts Ray, says what it finds, and waits.
DRIVER = """
import argparse, json, os, signal, sys, time
from chexseg_ray.command import Parser, guarded
from chexseg_ray.cluster.session import RaySession

def work(flags):
    session = RaySession(dashboard=False, num_cpus=1)
    session.start()
    import ray
    from chexseg_ray.cluster.raylet import pid_of_raylet
    handlers = [getattr(signal.getsignal(n), "__module__", "") for n in (signal.SIGINT, signal.SIGTERM)]
    pid = pid_of_raylet(ray._private.worker.global_worker.node.raylet_socket_name)
    answer = ray.get(ray.remote(lambda: 7).remote())
    facts = {"handlers": handlers, "raylet": pid, "answer": answer, "token": os.environ.get("RAY_AUTH_TOKEN_PATH"),
             "loopback": os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")}
    print("facts", json.dumps(facts), flush=True)
    if flags.end:
        session.stop()
        return 0
    time.sleep(120)
    return 1

parser = Parser("test")
parser.add_argument("--end", action="store_true")
sys.exit(guarded(parser, work))
"""


@pytest.fixture
def folder() -> Iterator[str]:
    """A short folder, for Ray's sockets; all processes that have it as RAY_TMPDIR end with the test."""
    found = tempfile.mkdtemp(prefix="cx")
    yield found
    kill_marked(f"RAY_TMPDIR={found}")
    shutil.rmtree(found, ignore_errors=True)


def start(folder: str, *flags: str, **changes: str | None) -> tuple[subprocess.Popen[str], dict[str, object]]:
    """Start the driver; returns it, and what it says of its Ray."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"HOME": folder, "RAY_TMPDIR": folder, **{k: v for k, v in changes.items() if v is not None}}
    for name in (name for name, value in changes.items() if value is None):
        del env[name]
    command = [sys.executable, "-c", DRIVER, *flags]
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("facts "):
            return process, json.loads(line.removeprefix("facts "))
    raise AssertionError(process.communicate()[1])


def test_a_local_ray_gives_the_signals_back_closes_its_token_and_is_watched(folder: str) -> None:
    """A raylet that is killed ends the driver with 75 and one line; Ray itself would end it with 1 and no word."""
    process, facts = start(folder)
    assert facts["handlers"] == ["chexseg_ray.errors"] * 2
    token = Path(folder) / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert facts["answer"] == 7
    assert facts["loopback"] == "0", "what it does is measured by tests/stages/test_job.py, on a network card"
    os.kill(int(str(facts["raylet"])), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75
    assert stderr == f"error: {LOST}\n"


@pytest.mark.slow
@pytest.mark.parametrize("home", ["/proc", None], ids=["read-only", "absent"])
def test_a_home_that_cannot_be_written_still_has_a_ray(home: str | None, folder: str) -> None:
    process, facts = start(folder, "--end", HOME=home, LC_ALL="POSIX")
    _, stderr = process.communicate(timeout=120)
    assert (process.returncode, stderr, facts["answer"]) == (0, "", 7)
    token = Path(str(facts["token"]))
    assert not token.exists(), "the token of its own is gone with it"
    deadline = time.monotonic() + 30
    while marked(f"RAY_TMPDIR={folder}"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
