"""What tests of whole studies share."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from chexseg_ray.config import StudyConfig, load_config

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = REPOSITORY / "tests" / "tiny.yaml"
IRNET = "sweep.method=[gradcam, irnet]"

Job = Callable[..., subprocess.CompletedProcess[str]]


def tiny(store: Path, *overrides: str) -> StudyConfig:
    """tests/tiny.yaml on a store, with overrides."""
    return load_config(TINY, [f"store.root={store}", *overrides])


def the_error(stderr: str) -> str:
    """The one line of an error, which is all that a job prints there."""
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert stderr.startswith("error: ")
    return stderr
