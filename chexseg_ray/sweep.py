"""The run of a whole study: shared upstream in the driver, then the missing points as trials, then the report."""

import importlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from chexseg_ray.artifacts import Record, Step, Store
from chexseg_ray.build import build, claim, load_plan, load_study, make_execution, prepare, refuse_what_is_lacking, trial_resources
from chexseg_ray.config import StudyConfig
from chexseg_ray.pipeline import Study, SweepPoint
from chexseg_ray.plan import PlannedStep, plan, print_plan, unknown_splits
from chexseg_ray.progress import say
from chexseg_ray.report.page import write_report
from chexseg_ray.stages.execution import Execution
from chexseg_ray.trials import TRIAL_STEPS, already_running, run_points


def run_study(config: StudyConfig, plan_only: bool = False) -> int:
    """Build what is missing of a study and write its report.

    Returns:
        Exit code: 0 done, 3 some trials failed.
    """
    start = time.monotonic()
    store = Store.open(config.store.root)
    say(f"store: {store.root}")
    if plan_only:
        study, absent = load_plan(config)
        print_plan(plan(study, store, config), study, config)
        for fault in absent:
            say(f"note: {fault} (nothing made from what is not there counts as built)")
        for split in unknown_splits(study, store, config):
            say(f"note: nobody says how many images the split {split!r} has; its costs are wrong until compute.rates.images does")
        return 0
    study, source = load_study(config)
    planned = plan(study, store, config)
    missing = [item for item in planned if not item.built]
    failed: list[SweepPoint] = []
    if missing:
        _announce(config, study, store, missing)
        with claim(store):
            ray_session = RaySession(config.compute.dashboard, check=partial(refuse_what_is_lacking, config, study))
            try:
                execution = make_execution(config, source, ray_session.start, store)
                prepare(config, study, source, store, execution)
                failed = _build_all(config, study, store, execution)
            finally:
                ray_session.stop()
    else:
        say(f"nothing to build: all {len(planned)} steps are in the store")
    write_report(config, study, store)
    say(f"{time.monotonic() - start:.0f} s")
    return 3 if failed else 0


def _announce(config: StudyConfig, study: Study, store: Store, missing: list[PlannedStep]) -> None:
    points = sum(store.find(step) is None for _, step in study.points)
    names = [item.step.name for item in missing if item.step.name not in TRIAL_STEPS]
    upstream = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "nothing"
    parallel = max(1.0, min(points, _cpus() / trial_resources(config, 0).num_cpus))
    seconds = sum(item.seconds for item in missing)
    trials = sum(item.seconds for item in missing if item.step.name in TRIAL_STEPS)
    minutes = (seconds - trials + trials / parallel + 30) / 60
    say(f"to build: {upstream}; {points} of {len(study.points)} sweep points; roughly {minutes:.0f} min on {_cpus()} CPUs")


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class RaySession:
    """Starts Ray once, when something needs it; ends what it started."""

    def __init__(self, dashboard: bool, num_cpus: int | None = None, check: Callable[[Mapping[str, float]], None] | None = None) -> None:
        self._dashboard = dashboard
        self._check = check
        self._num_cpus = num_cpus or _cpus()
        self._own = False

    def start(self) -> None:
        """Join the cluster of RAY_ADDRESS, or start one on this machine's loopback."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters comes as an exception
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # else Tune prints tables at verbose=0
        import ray

        if ray.is_initialized():
            return
        self._own = True
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            ray.init(address="local", num_cpus=self._num_cpus, include_dashboard=self._dashboard, _node_ip_address="127.0.0.1", **quiet)
            if self._check is not None:  # a cluster may grow, this machine cannot
                self._check(ray.cluster_resources())  # type: ignore[no-untyped-call]
        ray.data.DataContext.get_current().enable_progress_bars = False  # configures ray.data's loggers, so first
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        logging.getLogger("ray.train").setLevel(logging.WARNING)

    def stop(self) -> None:
        """Shut down what start() started."""
        if self._own:
            import ray

            ray.shutdown()


def _build_all(config: StudyConfig, study: Study, store: Store, execution: Execution) -> list[SweepPoint]:
    """Shared upstream in the driver, then the missing points as trials. Returns the points that failed."""
    waiting = [(point, step) for point, step in study.points if store.find(step) is None]
    needed = {ancestor.address for _, step in waiting for ancestor in step.ancestors()}
    if any(step.name == "classifier" and step.address in needed and store.find(step) is None for step in study.upstream()):
        threading.Thread(target=importlib.import_module, args=("torchvision",), daemon=True).start()  # 6 s, while Ray starts
    for step in study.upstream():
        if step.address in needed and store.find(step) is None:
            build(step, store, execution)
    if not waiting:
        return []
    execution.start_ray()
    with _scratch() as folder:
        shared = _share_pool(study, store, [step for _, step in waiting])
        return run_points(config, waiting, store, replace(execution, shared=shared, start_ray=already_running), folder)


class _scratch:
    """Tune's own bookkeeping, which nothing reads afterwards."""

    def __enter__(self) -> str:
        self._folder = tempfile.mkdtemp(prefix="chexseg_tune_")
        return self._folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _share_pool(study: Study, store: Store, waiting: list[Step]) -> dict[str, Any]:
    """Put the rows that the waiting points draw from into the object store, once: pixels, and masks of each source."""
    import ray

    from chexseg_ray.segmentation.mixing import weak_subset
    from chexseg_ray.stages.pool import Rows, accepted_ids, load_masks, load_pixels

    wanted: dict[str, set[str] | None] = {}
    records: dict[str, Record] = {}
    for evaluation in waiting:
        step = evaluation.inputs["segmentation"]
        for role in ("images_expert_train", "images_validation", "images_weak", "pseudo_masks"):
            if role in step.inputs:
                record = store.find(step.inputs[role])
                assert record is not None
                records[record.address] = record
                if role in ("images_weak", "pseudo_masks"):
                    masks = store.find(step.inputs["pseudo_masks"])
                    assert masks is not None
                    ids = accepted_ids(store, masks)
                    size = min(step.config["weak_n"], len(ids))
                    chosen = set(weak_subset(ids, step.config["sweep_seed"], step.config["trial"], size))
                    wanted[record.address] = chosen | (wanted.get(record.address) or set())
                else:
                    wanted[record.address] = None
    shared: dict[str, Any] = {}

    def put(key: str, rows: Rows) -> None:
        shared[key] = (rows.index, [ray.put(chunk) for chunk in rows.chunks])

    for address, record in records.items():
        ids_wanted = wanted[address]
        if record.name == "images":
            put(f"{address}/images", load_pixels(store, record, ids_wanted))
        if record.paths("masks/"):
            size = record.config["size"]
            put(f"{address}/masks", load_masks(store, record, size, ids_wanted))
    return shared
