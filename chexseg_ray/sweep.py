"""The grid of sweep points as Ray Tune trials, and the run of a whole study. Tune schedules; the store is the truth."""

import importlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from chexseg_ray.artifacts import Record, Step, Store
from chexseg_ray.build import build, claim, load_study, make_execution, plan, prepare, print_plan
from chexseg_ray.config import StudyConfig
from chexseg_ray.errors import InputError
from chexseg_ray.pipeline import Study, SweepPoint
from chexseg_ray.progress import say, track
from chexseg_ray.report.page import write_report
from chexseg_ray.stages.execution import Execution

TRIAL_STEPS = frozenset({"segmentation", "evaluation"})


def run_study(config: StudyConfig, plan_only: bool = False) -> int:
    """Build what is missing of a study and write its report.

    Returns:
        Exit code: 0 done, 3 some trials failed.
    """
    start = time.monotonic()
    store = Store.open(config.store.root)
    say(f"store: {store.root}")
    study, source = load_study(config)
    planned = plan(study, store, config)
    if plan_only:
        print_plan(planned, {step.address: point.label for point, step in study.points})
        return 0
    missing = [item for item in planned if not item.built]
    failed: list[SweepPoint] = []
    if missing:
        _announce(config, study, store, [item.step for item in missing], sum(item.seconds for item in missing))
        with claim(store):
            ray_session = RaySession(config.compute.dashboard)
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


def _announce(config: StudyConfig, study: Study, store: Store, missing: list[Step], seconds: float) -> None:
    points = sum(store.find(step) is None for _, step in study.points)
    names = [step.name for step in missing if step.name not in TRIAL_STEPS]
    upstream = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "nothing"
    parallel = max(1.0, min(points, _cpus() / config.compute.segmentation.num_cpus))
    trials = sum(item.seconds for item in plan(study, store, config) if not item.built and item.step.name in TRIAL_STEPS)
    minutes = (seconds - trials + trials / parallel + 30) / 60
    say(f"to build: {upstream}; {points} of {len(study.points)} sweep points; roughly {minutes:.0f} min on {_cpus()} CPUs")


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class RaySession:
    """Starts Ray once, when something needs it; ends what it started."""

    def __init__(self, dashboard: bool, num_cpus: int | None = None) -> None:
        self._dashboard = dashboard
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
        return _fit(config, waiting, store, replace(execution, shared=shared, start_ray=_already_running), folder)


def _already_running() -> None:
    """Trials run inside Ray: nothing to start. (A function by name, so that it pickles.)"""


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


@dataclass(frozen=True)
class _Waiting:
    point: SweepPoint
    step: Step


def _fit(config: StudyConfig, waiting: list[tuple[SweepPoint, Step]], store: Store, execution: Execution, folder: str) -> list[SweepPoint]:
    """Run the waiting points as trials of one Tuner; no scheduler, no early stopping."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    from ray import tune
    from ray.tune import FailureConfig, RunConfig, TuneConfig

    by_label = {point.label: _Waiting(point, step) for point, step in waiting}
    resources = config.compute.segmentation
    trainable = tune.with_resources(
        tune.with_parameters(partial(_trial), by_label=by_label, store=store, execution=execution),
        {"cpu": resources.num_cpus, "gpu": resources.num_gpus},
    )
    tuner = tune.Tuner(
        trainable,
        param_space={"point": tune.grid_search(list(by_label))},
        tune_config=TuneConfig(reuse_actors=True),
        run_config=RunConfig(
            name="sweep",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=config.compute.max_failures),
            callbacks=[_trial_lines(len(by_label))],
            verbose=0,
        ),
    )
    tuner.fit()
    failed = [item.point for item in by_label.values() if store.find(item.step) is None]
    for point in failed:
        say(f"failed: {point.label}: {_failure(store, by_label[point.label].step)}")
    return failed


def _trial_lines(total: int) -> Any:
    """A Tune callback that shows one line or bar step for every trial that ends."""
    from ray.tune import Callback

    show: Callable[[int, str], None] = track("sweep: points", total)

    class Lines(Callback):
        def __init__(self) -> None:
            self.done = 0

        def _ended(self, trial: Any, how: str) -> None:
            self.done += 1
            show(self.done, f"{trial.config['point']} {how}")

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self._ended(trial, "done" if (trial.last_result or {}).get("built", True) else "failed")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self._ended(trial, "failed")

    return Lines()


def _trial(space: Mapping[str, Any], by_label: Mapping[str, _Waiting], store: Store, execution: Execution) -> None:
    """One trial: train and evaluate one point. A fault of the point itself is written down, not raised (raising retries)."""
    from ray import tune

    step = by_label[space["point"]].step
    last: dict[str, Any] = {}

    def report(metrics: dict[str, Any]) -> None:
        last.update(metrics)
        tune.report(dict(last))

    try:
        build(step, store, replace(execution, report=report), TRIAL_STEPS)
    except InputError as error:
        write_failure(store, step, error)
        tune.report({**last, "built": False})
        return
    tune.report({**last, "built": True})


def write_failure(store: Store, step: Step, error: BaseException) -> None:
    """Say beside a step why it is not built; no record, so the next run tries again."""
    details = {"error": str(error), "kind": type(error).__name__, "traceback": traceback.format_exc()}
    store.put(f"{step.address}/failed.json", json.dumps(details, indent=1).encode())


def _failure(store: Store, step: Step) -> str:
    try:
        return str(json.loads(store.get(f"{step.address}/failed.json"))["error"])
    except FileNotFoundError:
        return "its process ended; see Ray's logs"
