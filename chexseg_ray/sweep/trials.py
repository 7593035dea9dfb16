"""Sweep points as Ray Tune trials: what each requests, their order, and what happens to one that fails.

Tune only schedules the trials; whether a point is built is read from the store.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from chexseg_ray.config.axes import SweepPoint
from chexseg_ray.config.resources import WorkerCompute
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.engine import prometheus
from chexseg_ray.engine.execution import Execution
from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.plan.cost import step_cost
from chexseg_ray.plan.demand import Node
from chexseg_ray.progress import say, track
from chexseg_ray.store.step import Step
from chexseg_ray.store.store import Store
from chexseg_ray.study.steps import TRIAL_STEPS
from chexseg_ray.sweep.build import build

MOST_STOPPED = 3  # trials whose storage failed, after which the others are ended too


@dataclass(frozen=True)
class Waiting:
    """A point to train, its evaluation step, and what its trial requests."""

    point: SweepPoint
    step: Step
    resources: WorkerCompute


def run_points(
    config: StudyConfig,
    waiting: Sequence[tuple[SweepPoint, Step]],
    store: Store,
    execution: Execution,
    folder: str,
    may_come: Sequence[Node] = (),
) -> list[SweepPoint]:
    """Train and evaluate the waiting points.

    Points with a worker group run first, in a `fit` of their own that starts only as many as the cluster has room for.
    Then all others run, each in one process, several on a GPU if they request a fraction. The longest start first, so
    that at the end no slot is idle for longer than one trial.

    Args:
        config: the study's config.
        waiting: the points to train with their evaluation steps.
        store: the study's store.
        execution: how steps run in a trial.
        folder: for Tune's files.
        may_come: the resources of each node that an autoscaler may add.

    Returns:
        The points that failed.

    Raises:
        TransientError: the storage failed in a trial. Others may have finished; MOST_STOPPED such trials end all.
    """
    import ray

    once = {step.address: (point, step) for point, step in reversed(waiting)}  # two names of one file are one training
    items = [
        Waiting(point, step, config.compute.segmentation.of(point.weak_n))
        for point, step in longest_first(list(once.values())[::-1])
    ]
    show = _show_states([item.point.label for item in items])
    with_group = [item for item in items if item.resources.num_workers]
    in_one_process = [item for item in items if not item.resources.num_workers]
    stopped: dict[str, str] = {}
    for part in filter(None, (with_group, in_one_process)):
        # by reference: the function is stored with every trial's actor, and must stay small at 10,000 points
        by_label, common = {item.point.label: ray.put(item) for item in part}, ray.put((store, execution))
        work = partial(_trial, by_label=by_label, common=common)
        resources = {item.point.label: item.resources for item in part}
        stopped |= fit_trials(work, resources, config.compute.max_failures, folder, show, may_come)
        if len(stopped) >= MOST_STOPPED:
            break
    prometheus.forget("trials")
    prometheus.forget("seconds_left", stage="sweep")
    built = store.find_all(item.step for item in items)
    failed = [item for item in items if item.step.address not in built]
    if stopped:
        first, error = next(iter(stopped.items()))
        raise TransientError(f"{first}: {error}")
    for item in failed:
        say(f"failed: {item.point.label}: {store.failure(item.step) or 'its process ended: see the logs of Ray'}")
    return [item.point for item in failed]


def _show_states(labels: Sequence[str]) -> Callable[[str, str], None]:
    """Return a function that is told each trial's new state and shows the counts in the log and as metrics."""
    progress = track("sweep: points", len(labels))
    states = dict.fromkeys(labels, "waiting")
    counts = {"waiting": len(states), "running": 0, "done": 0, "failed": 0}

    def show(label: str, state: str) -> None:
        counts[states[label]] -= 1
        counts[state] += 1
        states[label] = state
        for name, number in counts.items():
            prometheus.record("trials", number, state=name)
        if state in ("done", "failed"):
            seconds_left = progress(counts["done"] + counts["failed"], f"{label} {state}")
            prometheus.record("seconds_left", seconds_left, stage="sweep")

    return show


def longest_first(waiting: Sequence[tuple[SweepPoint, Step]]) -> list[tuple[SweepPoint, Step]]:
    """Sort points by the FLOPs of their trainings, most first (a stable sort).

    Args:
        waiting: points with their evaluation steps.
    """

    def flops(item: tuple[SweepPoint, Step]) -> float:
        return step_cost(item[1].inputs["segmentation"], {}, 0.0).flops

    return sorted(waiting, key=flops, reverse=True)


def fit_trials(
    work: Callable[[Mapping[str, Any]], None],
    resources: Mapping[str, WorkerCompute],
    max_failures: int,
    folder: str,
    show: Callable[[str, str], None],
    may_come: Sequence[Node] = (),
) -> dict[str, str]:
    """Run one trial per label, started in the order of `resources`, without a scheduler or early stopping.

    Args:
        work: the trial; gets {"point": label}.
        resources: what each trial requests, by label; all of them with workers, or all without.
        max_failures: how often a trial may start again after its process or node was lost.
        folder: for Tune's files.
        show: is called with (label, running | done | failed) when a trial starts or ends.
        may_come: nodes that an autoscaler may add; worker groups start for them too, so that it sees the demand.

    Returns:
        {label: error} of the trials that reported `stopped`; MOST_STOPPED of them end the others.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    from ray import tune
    from ray.tune import FailureConfig, RunConfig, TuneConfig

    def placement(space: Mapping[str, Any]) -> Any:
        cpus, gpus = resources[space["point"]].trial_bundle
        return tune.PlacementGroupFactory([{"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}])

    stopped: dict[str, str] = {}
    most = _groups_that_fit(list(resources.values()), may_come)
    tuner = tune.Tuner(
        tune.with_resources(work, placement),
        param_space={"point": tune.grid_search(list(resources))},
        tune_config=TuneConfig(reuse_actors=True, max_concurrent_trials=most),
        run_config=RunConfig(
            name="sweep",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[_trial_states(show, stopped)],
            stop=_end_if_storage_fails(),
            verbose=0,
        ),
    )
    tuner.fit()
    return stopped


def _end_if_storage_fails() -> Any:
    """Return a Tune stopper that ends all trials once MOST_STOPPED have reported `stopped`."""
    from ray.tune import Stopper

    class StorageFails(Stopper):
        def __init__(self) -> None:
            self._stopped: set[str] = set()

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            if "stopped" in result:
                self._stopped.add(trial_id)
            return False

        def stop_all(self) -> bool:
            return len(self._stopped) >= MOST_STOPPED

    return StorageFails()


def _groups_that_fit(resources: Sequence[WorkerCompute], may_come: Sequence[Node]) -> int | None:
    """Return how many of the largest worker groups fit on the cluster (at least 1); None for trials without workers."""
    if not resources[0].num_workers:
        return None
    import ray

    nodes = [ray.cluster_resources(), *may_come]  # type: ignore[no-untyped-call]
    free_cpus, free_gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    cpus = max(sum(cpus for cpus, _ in trial.trial_bundles) for trial in resources)
    gpus = max(sum(gpus for _, gpus in trial.trial_bundles) for trial in resources)
    room = free_cpus // cpus
    if gpus:
        room = min(room, free_gpus // gpus)
    return max(1, int(room))


def _trial_states(show: Callable[[str, str], None], stopped: dict[str, str]) -> Any:
    """Return a Tune callback that calls `show` for every trial that starts or ends, and adds to `stopped`."""
    from ray.tune import Callback

    def forget(trial: Any) -> None:
        """Drop Tune's statistics of each metric of an ended trial (17 kB for two metrics), which nothing here reads."""
        trial.run_metadata.metric_analysis.clear()
        trial.run_metadata.metric_n_steps.clear()

    class States(Callback):
        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            show(trial.config["point"], "running")

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            show(trial.config["point"], "done" if (trial.last_result or {}).get("built") else "failed")
            forget(trial)

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            if "stopped" in result:
                stopped[trial.config["point"]] = result["stopped"]

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            show(trial.config["point"], "failed")
            forget(trial)

    return States()


def _trial(space: Mapping[str, Any], by_label: Mapping[str, Any], common: Any) -> None:
    """Train and evaluate one point. No fault of it is raised, because Tune would try it again and print its traceback.

    A fault of the point is written to the store, and one of the storage is reported to the driver.

    Args:
        space: {"point": label}, from Tune.
        by_label: a Ray reference to the Waiting of each label.
        common: a Ray reference to (Store, Execution).
    """
    import ray
    from ray import tune

    item: Waiting = ray.get(by_label[space["point"]])
    store: Store
    execution: Execution
    store, execution = ray.get(common)
    last: dict[str, Any] = {}

    def report(metrics: dict[str, Any]) -> None:
        last.update(metrics)
        tune.report(dict(last))

    try:
        try:
            build(item.step, store, replace(execution, report=report, label=item.point.label), TRIAL_STEPS)
        except InputError as error:
            store.put_failure(item.step, error)
            tune.report({**last, "built": False})
            return
    except (TransientError, OSError) as error:
        tune.report({**last, "built": False, "stopped": " ".join(str(error).split())})
        return
    tune.report({**last, "built": True})
