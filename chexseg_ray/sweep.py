"""The run of a whole study: shared upstream in the driver, then the missing points as trials, then the report."""

import importlib
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from chexseg_ray.artifacts import Record, Step, Store
from chexseg_ray.build import build, check_inputs, claim, load_plan, load_study, make_execution, prepare, submission_id, trial_resources, who
from chexseg_ray.choice import choose
from chexseg_ray.cluster import (
    RaySession,
    claim_on_cluster,
    cpus_here,
    describe_job,
    growth,
    nodes,
    on_cluster,
    refuse_local_roots,
    with_workers,
)
from chexseg_ray.config import StudyConfig
from chexseg_ray.demand import demands, refuse_what_is_lacking
from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.pipeline import TRIAL_STEPS, Study, SweepPoint, prediction
from chexseg_ray.plan import PlannedStep, plan, print_plan, unknown_splits
from chexseg_ray.progress import say
from chexseg_ray.report.page import write_report
from chexseg_ray.schedule import schedule_lines
from chexseg_ray.stages.execution import Execution, Source
from chexseg_ray.trials import already_running, run_points
from chexseg_ray.waiting import Watch


def run_study(config: StudyConfig, plan_only: bool = False, asked: str = "") -> int:
    """Build what is missing of a study and write its report.

    Args:
        config: the study.
        plan_only: print the plan, run nothing.
        asked: the config file and the overrides as the user wrote them, for the metadata of a submitted job.

    Returns:
        Exit code: 0 done, 3 some trials failed.
    """
    start = time.monotonic()
    store = Store.open(config.store.root)
    say(f"store: {store.root}")
    if plan_only:
        study, absent = load_plan(config)
        planned = plan(study, store, config)
        print_plan(planned, study, store, config)
        for line in schedule_lines([item for item in planned if not item.built], study, config):
            say(line)
        if waiting := _unpredicted(study, store):
            say(f"note: {len(waiting)} chosen models are still to predict the test images")
        for fault in absent:
            say(f"note: {fault} (nothing made from what is not there counts as built)")
        for split in unknown_splits(study, store, config):
            say(f"note: nobody says how many images the split {split!r} has; its costs are wrong until compute.rates.images does")
        return 0
    study, source = load_study(config)
    planned = plan(study, store, config)
    missing = [item for item in planned if not item.built]
    unpredicted = [] if missing else _unpredicted(study, store)
    failed: list[SweepPoint] = []
    if missing or unpredicted:
        if missing:
            _announce(config, study, store, missing)
        else:
            say(f"to build: predictions of {len(unpredicted)} chosen models")
        built = {item.step.address for item in planned if item.built}
        failed = _build_missing(config, study, source, store, built, asked)
    else:
        say(f"nothing to build: all {len(planned)} steps are in the store")
    write_report(config, study, store, unchanged=not missing and not unpredicted)
    say(f"{time.monotonic() - start:.0f} s")
    return 3 if failed else 0


def _build_missing(config: StudyConfig, study: Study, source: Source | None, store: Store, built: set[str], asked: str) -> list[SweepPoint]:
    """Build under a claim on the store: on this machine, where Ray starts when a step needs it, or on a cluster, which is joined first."""
    check_inputs(config, source)
    refuse = partial(refuse_what_is_lacking, demands(config, study, built), growth=(), where="this machine")
    session = RaySession(config.compute.dashboard, cpus_here(), check=None if on_cluster() else refuse)
    try:
        if on_cluster():
            session.start()
            describe_job(submission_id(), study=config.report.name, config=asked, store=store.root)
            refuse_local_roots(config)
            config = with_workers(config)
            refuse_what_is_lacking(demands(config, study, built), nodes(), growth(config), "the cluster")
        with ExitStack() as held:
            held.enter_context(claim(store))
            if on_cluster():
                held.enter_context(claim_on_cluster(store, who()))
            watch = held.enter_context(Watch(nodes, partial(growth, config))) if on_cluster() else None
            execution = make_execution(config, source, session.start, store)
            if watch:
                watch.expect(demands(config, study).get("phantom", ()))
            prepare(config, study, source, store, execution)
            return _build_all(config, study, store, execution, watch)
    finally:
        session.stop()


def _unpredicted(study: Study, store: Store) -> list[Step]:
    """The predictions of the chosen models that are not built."""
    records = store.find_all(step.inputs["segmentation"] for _, step in study.points)
    steps = [prediction(chosen.evaluation) for chosen in choose(study, records).values()]
    return [step for step in steps if store.find(step) is None]


def _announce(config: StudyConfig, study: Study, store: Store, missing: list[PlannedStep]) -> None:
    lacking = {item.step.address for item in missing}
    points = sum(step.address in lacking for _, step in study.points)
    names = [item.step.name for item in missing if item.step.name not in TRIAL_STEPS]
    upstream = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "nothing"
    parallel = max(1.0, min(points, cpus_here() / trial_resources(config, 0).num_cpus))
    seconds = sum(item.seconds for item in missing)
    trials = sum(item.seconds for item in missing if item.step.name in TRIAL_STEPS)
    minutes = (seconds - trials + trials / parallel + 30) / 60
    time_ = "on the cluster (--plan has the GPU-hours)" if on_cluster() else f"roughly {minutes:.0f} min on {cpus_here()} CPUs"
    say(f"to build: {upstream}; {points} of {len(study.points)} sweep points; {time_}")


def _build_all(config: StudyConfig, study: Study, store: Store, execution: Execution, watch: Watch | None) -> list[SweepPoint]:
    """Shared upstream in the driver, then the missing points as trials. Returns the points that failed."""
    built = store.find_all(study.steps())
    waiting = [(point, step) for point, step in study.points if step.address not in built]
    wanted = demands(config, study, built)
    last = [step for _, step in waiting] + ([study.benchmark] if study.benchmark else [])
    needed = {ancestor.address for step in last for ancestor in (*step.ancestors(), step)}
    upstream = [step for step in study.upstream() if step.address in needed and step.address not in built]
    if any(step.name == "classifier" for step in upstream):
        threading.Thread(target=importlib.import_module, args=("torchvision",), daemon=True).start()  # 6 s, while Ray starts
    for step in upstream:
        if watch:
            watch.expect(wanted.get(step.name, ()))
        build(step, store, execution)
    failed: list[SweepPoint] = []
    if waiting:
        if watch:
            watch.expect(wanted["segmentation"])
        execution.start_ray()
        with _scratch() as folder:
            may_come = growth(config) if on_cluster() else ()
            shared = _share_pool(study, store, [step for _, step in waiting])
            failed = run_points(config, waiting, store, replace(execution, shared=shared, start_ray=already_running), folder, may_come)
    if watch:
        watch.expect(wanted.get("prediction", ()))
    try:
        for step in _unpredicted(study, store):
            build(step, store, execution)
    except (InputError, TransientError):
        write_report(config, study, store)  # every point is built: their report does not wait for a picture
        raise
    return failed


class _scratch:
    """Tune's own bookkeeping, which nothing reads afterwards."""

    def __enter__(self) -> str:
        self._folder = tempfile.mkdtemp(prefix="chexseg_tune_")
        return self._folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _share_pool(study: Study, store: Store, waiting: list[Step]) -> dict[str, Any]:
    """Put what the waiting points draw from into the object store, once: weak subsets, pixels, and masks of each source.

    Rows of a subset lie together, the smallest of a trial first, so that a trial fetches few chunks beyond its own images.
    """
    import ray

    from chexseg_ray.stages.pool import Rows, load_masks, load_pixels, mask_sizes, subset_key, weak_ids

    records: dict[str, Record] = {}
    whole: set[str] = set()  # addresses whose rows are all wanted
    order: dict[str, dict[str, None]] = defaultdict(dict)  # of the others the wanted ids, in their order
    sizes: dict[str, dict[str, tuple[int, int]]] = {}
    accepted: dict[str, list[str]] = {}
    shared: dict[str, Any] = {}
    segmentations = [step.inputs["segmentation"] for step in waiting]
    for step in sorted(segmentations, key=lambda step: (step.config["trial"], step.config["weak_n"])):
        for role in ("images_expert_train", "images_validation"):
            if role in step.inputs:
                whole.add(_built(store, step.inputs[role], records).address)
        if "pseudo_masks" not in step.inputs:
            continue
        masks, images = (_built(store, step.inputs[role], records) for role in ("pseudo_masks", "images_weak"))
        if masks.address not in accepted:
            sizes[masks.address] = mask_sizes(store, masks)
            accepted[masks.address] = sorted(sizes[masks.address])
        key = subset_key(masks, step.config)
        if key in shared or step.config["weak_n"] > len(accepted[masks.address]):
            continue  # a size that is too large fails alone, and says so
        chosen = weak_ids(accepted[masks.address], step.config)
        shared[key] = ray.put(chosen)
        for record in (masks, images):
            order[record.address] |= dict.fromkeys(chosen)

    def put(key: str, rows: Rows) -> None:
        shared[key] = (rows.index, [ray.put(chunk) for chunk in rows.chunks])

    for address in (*sorted(whole), *order):
        record, ids = records[address], None if address in whole else list(order[address])
        if record.name == "images":
            put(f"{address}/images", load_pixels(store, record, ids))
        if record.paths("masks/"):
            put(f"{address}/masks", load_masks(store, record, record.config["size"], ids))
            known = sizes.get(address) or mask_sizes(store, record)
            shared[f"{address}/sizes"] = ray.put(known if ids is None else {cxr_id: known[cxr_id] for cxr_id in ids})
    return shared


def _built(store: Store, step: Step, known: dict[str, Record]) -> Record:
    """The record of a step that the driver has built, read once."""
    if step.address not in known:
        record = store.find(step)
        assert record is not None, step.address
        known[step.address] = record
    return known[step.address]
