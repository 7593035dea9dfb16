"""build(step): builds a step's inputs, runs the step if the store does not have it, and commits its record."""

import importlib
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chexseg_ray.engine import prometheus
from chexseg_ray.engine.execution import Execution, Made, Task
from chexseg_ray.engine.memory import enough_memory
from chexseg_ray.errors import TransientError
from chexseg_ray.progress import say
from chexseg_ray.store.step import Record, Step
from chexseg_ray.store.store import Store
from chexseg_ray.study.steps import module_of

_PACKAGES = ("ray", "torch", "segmentation-models-pytorch", "numpy", "pyarrow", "scikit-image", "pillow")


def build(step: Step, store: Store, execution: Execution, only: frozenset[str] | None = None) -> Record:
    """Return the record of a step; builds the step, and its inputs first, if the store does not have it.

    Args:
        step: the step to build.
        store: the store it is built in.
        execution: how steps run here.
        only: the kinds of step that may run here; all others must be built already. A trial runs no shared step.

    Raises:
        TransientError: a step of another kind than `only` is missing.
        InputError: the config or the data make the step impossible.
    """
    existing = store.find(step)
    if existing is not None:
        return existing
    if only is not None and step.name not in only:
        raise TransientError(f"{step.address}: is not built, and a trial may not build it: run the sweep again")
    inputs = {role: build(child, store, execution, only) for role, child in step.inputs.items()}
    if store.exists(f"{step.address}/record.json"):
        say(f"{store.shown(step.address)}/record.json: is damaged, so the step is built again")
    attempt = store.new_attempt(step)
    start = time.monotonic()
    stage = importlib.import_module(module_of(step.name))  # importing torch and Ray takes seconds: only when needed
    made = _make(stage, Task(step, inputs, attempt, execution))
    record = Record(
        name=step.name,
        version=step.version,
        fingerprint=step.fingerprint,
        config=dict(step.config),
        inputs={role: child.fingerprint for role, child in step.inputs.items()},
        attempt=attempt.name,
        files=tuple(sorted(made.files, key=lambda entry: entry.path)),
        rows=made.rows,
        rejects=made.rejects,
        metrics=made.metrics,
        run={**made.run, **_circumstances(), "seconds": round(time.monotonic() - start, 2)},
    )
    store.commit(record)
    prometheus.record("stage_seconds", record.run["seconds"], stage=step.name)
    say(f"built {record.address} in {record.run['seconds']:.1f} s")
    return record


def _make(stage: Any, task: Task) -> Made:
    """Run a stage in this process."""
    if task.execution.compute.deterministic:
        from chexseg_ray.engine.devices import use_deterministic_algorithms

        use_deterministic_algorithms()
    with enough_memory(f"{task.step.name}: ask for a larger part of a GPU (compute, num_gpus)"):
        made: Made = stage.make(task)
    return made


def _circumstances() -> dict[str, Any]:
    return {
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "git_commit": _git_commit(),
        "host": platform.node(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout that this file belongs to; None if it belongs to none."""
    file, commits = Path(__file__), []
    for command in (["ls-files", "--error-unmatch", file.name], ["rev-parse", "HEAD"]):  # tracked, and not just inside
        try:
            done = subprocess.run(
                ["git", *command], cwd=file.parent, capture_output=True, text=True, timeout=10, check=False
            )
        except OSError:
            return None
        if done.returncode:
            return None
        commits.append(done.stdout.strip())
    return commits[-1] or None
