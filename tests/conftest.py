"""Markers, where the real data are, and one Ray for all tests that need it."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
_STEERING = (
    "HOME",
    "TMPDIR",
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_TMPDIR",
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under a shell's &; the jobs of tests would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test as `science` that is marked neither as `ray` nor as `slow`."""
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("ray", "slow")):
            item.add_marker(pytest.mark.science)


@pytest.fixture(autouse=True)
def same_environment(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a science test that leaves a variable that steers Ray or names a folder changed for the tests after it."""
    before = {name: os.environ.get(name) for name in _STEERING}
    yield
    if request.node.get_closest_marker("science"):  # a Ray test starts Ray for the session
        assert {name: os.environ.get(name) for name in _STEERING} == before


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real X-rays with masks; skips the test on a machine that has none.

    CHEXSEG_REAL_DATA names the folder in the environment; otherwise it is shared/data/real beside the repository.
    """
    folder = Path(os.environ.get("CHEXSEG_REAL_DATA", REPOSITORY.parent / "shared" / "data" / "real"))
    if not folder.is_dir():
        pytest.skip("no real data beside the repository")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a random number generator with seed 0."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def private_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], None]]:
    """Yield a function that starts a local Ray of four CPUs, once, with its own HOME; ends Ray after the session."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="cx"))  # short: Ray's sockets lie below
    saved = {name: os.environ.get(name) for name in ("HOME", "RAY_TMPDIR", "RAY_ADDRESS")}
    os.environ |= {"HOME": str(folder), "RAY_TMPDIR": str(folder)}
    os.environ.pop("RAY_ADDRESS", None)
    from chexseg_ray.cluster.session import RaySession

    session = RaySession(dashboard=False, num_cpus=4)
    yield session.start
    session.stop()
    for name, value in saved.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
