"""build(step): inputs first, run if absent, commit. And the plan: what is built, what is not, why, and what it costs."""

import hashlib
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from chexseg_ray.artifacts import Record, Step, Store, differing_fields, open_filesystem
from chexseg_ray.config import StudyConfig
from chexseg_ray.cost import step_flops
from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.pipeline import Study, study_graph
from chexseg_ray.progress import say
from chexseg_ray.stages.execution import ActorResources, Execution, Made, Source, Task, TrainResources

SOURCE_FIELDS = ("weak_csv", "expert_csv", "expert_masks", "test_csv", "test_masks")
_PACKAGES = ("ray", "torch", "segmentation-models-pytorch", "numpy", "pyarrow", "scikit-image", "pillow")


def make_function(name: str) -> Callable[[Task], Made]:
    """The stage that makes a kind of step; imported when needed, as torch and Ray take seconds."""
    if name == "phantom":
        from chexseg_ray.stages.phantom import make
    elif name == "manifest":
        from chexseg_ray.stages.manifest import make
    elif name == "images":
        from chexseg_ray.stages.images import make
    elif name == "classifier":
        from chexseg_ray.stages.classifier import make
    elif name == "cams":
        from chexseg_ray.stages.cams import make
    elif name == "encoder":
        from chexseg_ray.stages.encoder import make
    elif name == "irnet":
        from chexseg_ray.stages.irnet import make
    elif name == "propagation":
        from chexseg_ray.stages.propagation import make
    elif name == "pseudo_masks":
        from chexseg_ray.stages.pseudo_masks import make
    elif name == "segmentation":
        from chexseg_ray.stages.segmentation import make
    else:
        assert name == "evaluation", name
        from chexseg_ray.stages.evaluation import make
    return make


def build(step: Step, store: Store, execution: Execution, only: frozenset[str] | None = None) -> Record:
    """The record of a step, made now if it is not there.

    Args:
        step: what to build; its inputs are built first.
        store: where.
        execution: how.
        only: names of steps that may be run here; any other one must be built already (a trial runs no shared upstream).

    Raises:
        TransientError: a step outside `only` is missing.
    """
    found = store.find(step)
    if found is not None:
        return found
    if only is not None and step.name not in only:
        raise TransientError(f"{step.address}: is not built, and is not for a trial to build: run the sweep again")
    inputs = {role: build(child, store, execution, only) for role, child in step.inputs.items()}
    attempt = store.new_attempt(step)
    start = time.monotonic()
    made = make_function(step.name)(Task(step, inputs, attempt, execution))
    record = Record(
        name=step.name,
        version=step.version,
        fingerprint=step.fingerprint,
        config=dict(step.config),
        inputs={role: child.fingerprint for role, child in step.inputs.items()},
        attempt=attempt.name,
        files=tuple(sorted(made.files, key=lambda f: f.path)),
        rows=made.rows,
        rejects=made.rejects,
        metrics=made.metrics,
        run={**made.run, **_circumstances(), "seconds": round(time.monotonic() - start, 2)},
    )
    store.commit(record)
    say(f"built {record.address} in {record.run['seconds']:.1f} s")
    return record


def _circumstances() -> dict[str, Any]:
    return {
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "git_commit": _git_commit(),
        "host": platform.node(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git_commit() -> str | None:
    try:
        where = Path(__file__).parent
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def open_source(config: StudyConfig) -> Source | None:
    """The data root of the config; None for the phantom.

    Raises:
        InputError: the root is no folder.
    """
    if config.data.root is None:
        return None
    filesystem, base = open_filesystem(config.data.root, "data.root")
    if filesystem.get_file_info(base).type != pafs.FileType.Directory:
        raise InputError(f"data.root={config.data.root}: is no folder: name the folder that the CSV and mask files lie in")
    return Source(filesystem, base)


def source_hashes(config: StudyConfig, source: Source | None) -> dict[str, str]:
    """sha256 of each CSV and JSON source by its field; empty for the phantom."""
    if source is None:
        return {}
    out = {}
    for field in SOURCE_FIELDS:
        name = getattr(config.data, field)
        if name is not None:
            try:
                out[field] = hashlib.sha256(source.read(name)).hexdigest()
            except FileNotFoundError:
                raise InputError(f"data.{field}={name}: is no file below data.root={config.data.root}: correct the name") from None
    return out


def encoder_file(config: StudyConfig) -> str | None:
    """The path or URI of the weights that irnet.encoder names; None when it names no file or nothing uses it."""
    used = "irnet" in config.sweep.method and any(p < 1 for p in config.sweep.p)
    return config.irnet.encoder if used and config.irnet.encoder not in ("random", "imagenet") else None


def encoder_hash(config: StudyConfig) -> dict[str, str]:
    """sha256 of that file, as `irnet_encoder`; empty when there is none."""
    name = encoder_file(config)
    if name is None:
        return {}
    filesystem, path = open_filesystem(name, "irnet.encoder")
    try:
        with filesystem.open_input_file(path) as stream:
            return {"irnet_encoder": hashlib.sha256(stream.read()).hexdigest()}
    except OSError:
        raise InputError(f"irnet.encoder={name}: is no file that can be read: name random, imagenet, or a file of ResNet50 weights") from None


def load_study(config: StudyConfig) -> tuple[Study, Source | None]:
    """The graph of a config, with its sources read and hashed."""
    source = open_source(config)
    return study_graph(config, source_hashes(config, source) | encoder_hash(config)), source


def make_execution(config: StudyConfig, source: Source | None, start_ray: Callable[[], None], store: Store) -> Execution:
    """How this config runs its steps."""
    compute = config.compute
    segmentation = compute.segmentation
    return Execution(
        source=source,
        files={field: getattr(config.data, field) for field in SOURCE_FIELDS},
        encoder_file=encoder_file(config),
        max_reject_fraction=config.data.max_reject_fraction,
        allow_expert_rejects=config.data.allow_expert_rejects,
        images_cpus=compute.images.num_cpus,
        pseudo_masks_cpus=compute.pseudo_masks.num_cpus,
        cams=ActorResources(**compute.cams.model_dump()),
        classifier=TrainResources(**compute.classifier.model_dump()),
        irnet=TrainResources(**compute.irnet.model_dump()),
        propagation=ActorResources(**compute.propagation.model_dump()),
        segmentation=TrainResources(num_workers=0, **segmentation.model_dump()),
        state_seconds=compute.state_seconds,
        train_storage=store.root if "://" in store.root else f"{store.root}/.ray",
        start_ray=start_ray,
    )


def prepare(config: StudyConfig, study: Study, source: Source | None, store: Store, execution: Execution) -> None:
    """Find what is wrong with weights and data before anything is trained; with weights and the user's own data, before Ray starts.

    Raises:
        InputError: encoder weights that are not there or do not fit, a fault of a source file, a patient in two files, or a sweep that
            asks for more images than there are.
    """
    for step in study.upstream():
        if step.name == "encoder":
            build(step, store, execution)
    if source is not None:
        from chexseg_ray.stages.manifest import check_sources

        check_sources(source, execution.files, config.data.pathologies)
    rows = {step.config["split"]: build(step, store, execution).rows for step in study.upstream() if step.name == "manifest"}
    asked = {"weak": ("weak_n", config.sweep.weak_n), "expert_train": ("num_expert", config.sweep.num_expert)}
    for split, (field, sizes) in asked.items():
        too_large = [n for n in sizes if n is not None and n > rows.get(split, n)]
        if too_large:
            raise InputError(f"sweep.{field}={too_large[0]} exceeds the {rows[split]} images of the split {split!r}: choose a smaller one")


@dataclass(frozen=True)
class PlannedStep:
    """A step of the plan; `why` is empty for a hit, `seconds` is of one CPU thread."""

    step: Step
    built: bool
    why: str
    flops: float
    seconds: float


def plan(study: Study, store: Store, config: StudyConfig) -> list[PlannedStep]:
    """Every step of the study with its state, inputs first."""
    out = []
    records: dict[str, list[Record]] = {}
    sizes = _split_sizes(study, store, config)
    for step in study.steps():
        built = store.find(step) is not None
        if not built and step.name not in records:
            records[step.name] = store.records(step.name)
        why = "" if built else _why(step, records[step.name])
        flops = step_flops(step, sizes)
        seconds = flops / config.compute.flops_per_second + (0.005 * sum(sizes.values()) if not flops else 0.0)
        out.append(PlannedStep(step, built, why, flops, seconds))
    return out


def _split_sizes(study: Study, store: Store, config: StudyConfig) -> dict[str, int]:
    phantom = config.data.phantom
    sizes = {} if config.data.root else {"weak": round(1.7 * phantom.num_train_patients), "test": phantom.num_test_images}
    for step in study.upstream():
        if step.name == "manifest" and (record := store.find(step)):
            sizes[step.config["split"]] = record.rows
    return sizes


def _why(step: Step, records: list[Record]) -> str:
    nearest = differing_fields(step, records)
    if nearest is None:
        return "never built"
    return f"{', '.join(nearest[1][:4])} differ{'s' if len(nearest[1]) == 1 else ''} from {nearest[0]}"


def print_plan(planned: list[PlannedStep], labels: Mapping[str, str]) -> None:
    """One line a step: hit or miss, its address, why it misses, its cost."""
    for item in planned:
        label = labels.get(item.step.address, item.step.config.get("split", item.step.config.get("architecture", "")))
        state = "hit " if item.built else "miss"
        cost = "" if item.built else f"  [{item.flops / 1e12:.2f} TFLOP, about {item.seconds:.0f} s of one CPU thread]"
        say(f"{state} {item.step.address:<28} {label}{'  ' + item.why if item.why else ''}{cost}")
    missing = [item for item in planned if not item.built]
    total = sum(item.seconds for item in missing)
    say(f"{len(planned) - len(missing)} hits, {len(missing)} misses, {sum(i.flops for i in missing) / 1e12:.1f} TFLOP, about {total:.0f} s")


@contextmanager
def claim(store: Store) -> Iterator[None]:
    """One driver a local store root: a lock on `.claim` that dies with its process.

    Raises:
        TransientError: another driver holds it; says which, and since when.
    """
    if not store.is_local:
        yield
        return
    import fcntl

    path = Path(store.path(".claim"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise TransientError(f"{store.root}: in use by {stream.read().strip()}: wait for it, or stop it") from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()} since {datetime.now(UTC).isoformat(timespec='seconds')}")
        stream.flush()
        yield
