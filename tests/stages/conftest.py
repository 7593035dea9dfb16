"""The tiny study, built once by the real command line, and ways to run jobs."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from studies import IRNET, REPOSITORY, TINY, Job


@pytest.fixture(scope="session")
def private_home() -> Iterator[dict[str, str]]:
    """An environment with its own HOME and Ray folder, and no cluster to join."""
    folder = tempfile.mkdtemp(prefix="cx")  # short: Ray's sockets lie below
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    yield env | {"HOME": folder, "RAY_TMPDIR": folder, "PYTHONPATH": str(REPOSITORY)}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def job(private_home: dict[str, str]) -> Job:
    """Run a job as a user does; returns what it printed and its exit code."""

    def run(name: str, *arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(REPOSITORY / "jobs" / name), *arguments]
        return subprocess.run(
            command,
            env=private_home,
            cwd=private_home["HOME"],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def tiny_store(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the tiny study. Copy it before changing it."""
    store = tmp_path_factory.mktemp("tiny") / "store"
    done = job("sweep.py", str(TINY), f"store.root={store}")
    assert done.returncode == 0, done.stdout + done.stderr
    (store / "stdout.txt").write_text(done.stdout)
    return store


@pytest.fixture(scope="session")
def irnet_store(tiny_store: Path, job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study with IRNet's pseudo masks too. Copy it before changing it."""
    store = Path(shutil.copytree(tiny_store, tmp_path_factory.mktemp("irnet") / "store"))
    done = job("sweep.py", str(TINY), f"store.root={store}", IRNET)
    assert done.returncode == 0, done.stdout + done.stderr
    (store / "stdout.txt").write_text(done.stdout)
    return store


@pytest.fixture
def irnet_copy(irnet_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(irnet_store, tmp_path / "store"))


@pytest.fixture
def store_copy(tiny_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))


@pytest.fixture(scope="session")
def phantom_root(tiny_store: Path) -> Path:
    """The tiny phantom as a user's data root."""
    return next(p for p in tiny_store.glob("phantom/*/*") if p.is_dir())
