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
    """Return the error of a job that failed: one line that begins with `error: `.

    At most two lines follow: what of the study was kept, and the command that goes on.
    """
    error, *more = stderr.strip().splitlines()
    assert error.startswith("error: ")
    assert len(more) <= 2, stderr
    assert not more or "kept" in more[0], stderr
    assert not more or "to go on: " in more[-1], stderr
    return error
