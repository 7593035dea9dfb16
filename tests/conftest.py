"""Markers, the real data's place, and one Ray for all tests that need it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("ray", "slow")):
            item.add_marker(pytest.mark.science)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real X-rays with masks, which lie beside the repository where they lie at all."""
    folder = Path(os.environ.get("CHEXSEG_REAL_DATA", REPOSITORY.parent / "shared" / "data" / "real"))
    if not folder.is_dir():
        pytest.skip("no real data beside the repository")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def private_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], None]]:
    """Starts a local Ray of four CPUs with its own HOME and folder, once; ends it after the session."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="cx"))  # short: Ray's sockets lie below
    saved = {name: os.environ.get(name) for name in ("HOME", "RAY_TMPDIR", "RAY_ADDRESS")}
    os.environ |= {"HOME": str(folder), "RAY_TMPDIR": str(folder)}
    os.environ.pop("RAY_ADDRESS", None)
    from chexseg_ray.cluster import RaySession

    session = RaySession(dashboard=False, num_cpus=4)
    yield session.start
    session.stop()
    for name, value in saved.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
