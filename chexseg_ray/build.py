"""build(step): inputs first, run if absent, commit. With what it needs: the sources, how steps run, and the claim on a store."""

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from chexseg_ray.artifacts import Record, Step, Store, open_filesystem, storage
from chexseg_ray.config import StudyConfig, for_weak_n
from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.pipeline import MADE_HERE, PAPER_NETWORK, Study, study_graph, sweep_points
from chexseg_ray.progress import say
from chexseg_ray.stages import metrics
from chexseg_ray.stages.execution import ActorResources, Execution, Made, Source, Task, TrainResources

SOURCE_FIELDS = ("weak_csv", "expert_csv", "expert_masks", "test_csv", "test_masks", "benchmark_masks")
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
    elif name == "moco":
        from chexseg_ray.stages.moco import make
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
    elif name == "benchmark":
        from chexseg_ray.stages.benchmark import make
    elif name == "prediction":
        from chexseg_ray.stages.prediction import make
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
    metrics.record("stage_seconds", record.run["seconds"], stage=step.name)
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
    with storage("read", config.data.root):
        there = filesystem.get_file_info(base).type == pafs.FileType.Directory
    if not there:
        raise InputError(f"data.root={config.data.root}: is no folder: name the folder that the CSV and mask files lie in")
    return Source(filesystem, base)


def source_files(config: StudyConfig) -> dict[str, str | None]:
    """The CSV and JSON sources' paths below the data root, by field."""
    return {field: getattr(config.data, field) for field in SOURCE_FIELDS}


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


def encoder_files(config: StudyConfig) -> dict[str, str]:
    """The files of encoder weights that the study reads: {path or URI: the field that names it}."""
    points = sweep_points(config)
    inits = {("sweep.init", point.init, point.encoder) for point in points}
    makers = {init for _, init, _ in inits}
    encoders = sorted({encoder for _, _, encoder in inits})
    if "chexpert" in makers:
        inits |= {("encoder_classifier.init", config.encoder_classifier.init, encoder) for encoder in encoders}
    if "moco" in makers:
        inits |= {("moco.init", config.moco.init, encoder) for encoder in encoders}
    if any(point.p < 1 for point in points):
        inits.add(("classifier.init", config.classifier.init, config.classifier.architecture))
    if any(point.method == "irnet" for point in points):
        inits.add(("irnet.encoder", config.irnet.encoder, "resnet50"))
    files = {}
    for field, init, architecture in sorted(inits):
        if init == "imagenet" and architecture in config.pretraining.imagenet_files:
            files[config.pretraining.imagenet_files[architecture]] = f"pretraining.imagenet_files.{architecture}"
        elif init not in MADE_HERE:
            files[init] = field
    return files


def hash_encoder_files(config: StudyConfig) -> dict[str, str]:
    """sha256 of each of those files, by its path.

    Raises:
        InputError: one of them cannot be read; names the field.
    """
    out = {}
    for path, field in encoder_files(config).items():
        filesystem, where = open_filesystem(path, field)
        try:
            with storage("read", path), filesystem.open_input_file(where) as stream:
                out[path] = hashlib.sha256(stream.read()).hexdigest()
        except (FileNotFoundError, IsADirectoryError):
            names = "random or imagenet" if field != "sweep.init" else "random, imagenet, moco or chexpert"
            raise InputError(f"{field}={path}: is no file that can be read: name {names}, or a file of encoder weights") from None
    return out


def load_study(config: StudyConfig) -> tuple[Study, Source | None]:
    """The graph of a config, with its sources read and hashed."""
    source = open_source(config)
    return study_graph(config, source_hashes(config, source), hash_encoder_files(config)), source


def load_plan(config: StudyConfig) -> tuple[Study, list[str]]:
    """The graph of a config whose data or files of weights may be elsewhere, for its plan; and what is not there, in words.

    A file that is not there is taken as one of unknown content: nothing that is made from it counts as built.
    """
    absent = []
    try:
        sources = source_hashes(config, open_source(config))
    except InputError as error:
        absent.append(str(error))
        sources = {field: f"absent {getattr(config.data, field)}" for field in SOURCE_FIELDS if config.data.root}
    try:
        files = hash_encoder_files(config)
    except InputError as error:
        absent.append(str(error))
        files = {path: f"absent {path}" for path in encoder_files(config)}
    return study_graph(config, sources, files), absent


def trial_resources(config: StudyConfig, weak_n: int) -> TrainResources:
    """What the trial of a point with that many weak images asks for."""
    c = config.compute.segmentation
    return TrainResources(for_weak_n(c.num_workers, weak_n), for_weak_n(c.num_cpus, weak_n), for_weak_n(c.num_gpus, weak_n), c.threads)


def make_execution(config: StudyConfig, source: Source | None, start_ray: Callable[[], None], store: Store) -> Execution:
    """How this config runs its steps."""
    compute = config.compute
    return Execution(
        source=source,
        files=source_files(config),
        encoder_files=tuple(encoder_files(config)),
        download=config.pretraining.download,
        max_reject_fraction=config.data.max_reject_fraction,
        allow_expert_rejects=config.data.allow_expert_rejects,
        images_cpus=compute.images.num_cpus,
        pseudo_masks_cpus=compute.pseudo_masks.num_cpus,
        cams=ActorResources(**compute.cams.model_dump()),
        classifier=TrainResources(**compute.classifier.model_dump()),
        moco=TrainResources(**compute.moco.model_dump()),
        irnet=TrainResources(**compute.irnet.model_dump()),
        propagation=ActorResources(**compute.propagation.model_dump()),
        segmentation=trial_resources(config, 0),
        max_failures=compute.max_failures,
        state_seconds=compute.state_seconds,
        start_ray=start_ray,
    )


def check_inputs(config: StudyConfig, source: Source | None) -> None:
    """Find what is wrong with networks and the user's own files before Ray starts or a cluster is joined. Writes nothing.

    Raises:
        InputError: a network that smp cannot build, a fault of a source file, or a patient in two files.
    """
    _check_networks(config)
    if source is not None:
        from chexseg_ray.stages.manifest import check_sources

        check_sources(source, source_files(config), config.data.pathologies, config.data.names_in_files)


def prepare(config: StudyConfig, study: Study, source: Source | None, store: Store, execution: Execution) -> None:
    """Build what shows faults of weights and data before anything is trained; with weights and the user's own data, before a local Ray starts.

    Raises:
        InputError: encoder weights that are not there or do not fit, or a sweep that asks for more images than there are.
    """
    for step in study.upstream():
        if step.name == "encoder":
            build(step, store, execution)
    rows = {step.config["split"]: build(step, store, execution).rows for step in study.upstream() if step.name == "manifest"}
    if study.benchmark and source is not None:
        from chexseg_ray.stages.benchmark import read_benchmark

        manifest = build(study.benchmark.inputs["manifest_test"], store, execution)
        read_benchmark(source, config.data.benchmark_masks, study.benchmark.config, store, manifest)
    asked = {"weak": ("weak_n", config.sweep.every("weak_n")), "expert_train": ("num_expert", config.sweep.every("num_expert"))}
    for split, (field, sizes) in asked.items():
        too_large = [n for n in sizes if n is not None and n > rows.get(split, n)]
        if too_large:
            raise InputError(f"sweep.{field}={too_large[0]} exceeds the {rows[split]} images of the split {split!r}: choose a smaller one")


def _check_networks(config: StudyConfig) -> None:
    """The paper's network is known to work, and smp takes 6 s to import: another one is tried on empty images."""
    section = config.segmentation
    others = [pair for pair in product(section.architectures, section.encoders) if pair != PAPER_NETWORK]
    if others:
        from chexseg_ray.stages.segmentation import check_networks

        check_networks(others, config.data.image_size, section.model_dump())


def submission_id() -> str | None:
    """Of the submitted job that this process is; None outside one."""
    found: str | None = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("metadata", {}).get("job_submission_id")
    return found


def who() -> str:
    """What a second driver of a store is told of this one."""
    job = submission_id()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return f"process {os.getpid()} on {platform.node()}{f' of job {job}' if job else ''} since {now}"


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
        stream.write(who())
        stream.flush()
        yield
