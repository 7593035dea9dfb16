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
    """The one line of an error, the last that a job prints; a library may have said something of the machine above it."""
    *above, line = stderr.strip().splitlines()
    assert line.startswith("error: "), stderr
    assert not any("Traceback" in other or other.startswith("error: ") for other in above), stderr
    return line
