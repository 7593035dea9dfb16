"""Helpers that the tests of whole studies share."""

import subprocess
from collections.abc import Callable
from pathlib import Path

from chexseg_ray.config.parse import load_config
from chexseg_ray.config.schema import StudyConfig

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = REPOSITORY / "tests" / "tiny.yaml"
IRNET = "sweep.method=[gradcam, irnet]"

Job = Callable[..., subprocess.CompletedProcess[str]]


def tiny(store: Path, *overrides: str) -> StudyConfig:
    """Load tests/tiny.yaml with a store and overrides, each as section.field=value."""
    return load_config(TINY, [f"store.root={store}", *overrides])


def the_error(stderr: str) -> str:
    """Return the error stream of a job that failed, which must be one line that begins with `error: `."""
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert stderr.startswith("error: ")
    return stderr
