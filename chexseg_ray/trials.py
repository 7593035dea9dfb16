"""Sweep points as Ray Tune trials: what each asks for, in which order, and what becomes of one that fails. Tune schedules; the store is the truth."""

import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from chexseg_ray.artifacts import Step, Store
from chexseg_ray.build import build, trial_resources
from chexseg_ray.config import StudyConfig
from chexseg_ray.cost import step_cost
from chexseg_ray.demand import GROUP_DRIVER_CPUS, Node
from chexseg_ray.errors import InputError
from chexseg_ray.pipeline import TRIAL_STEPS, SweepPoint
from chexseg_ray.progress import say, track
from chexseg_ray.stages import metrics
from chexseg_ray.stages.execution import Execution, TrainResources


@dataclass(frozen=True)
class Waiting:
    """A point to train, its evaluation step, and what it asks for."""

    point: SweepPoint
    step: Step
    resources: TrainResources


def already_running() -> None:
    """Trials run inside Ray: nothing to start. (A function by name, so that it pickles.)"""


def run_points(
    config: StudyConfig, waiting: Sequence[tuple[SweepPoint, Step]], store: Store, execution: Execution, folder: str, may_come: Sequence[Node] = ()
) -> list[SweepPoint]:
    """Train and evaluate the waiting points. Returns those that failed. `may_come`: nodes that an autoscaler may add.

    Points that ask for a worker group go first, in a `fit` of their own that starts no more of them than the cluster has room for; then
    all others, each in its own process, several on a GPU where they ask for a part of it. The longest come first, so that at the end no
    slot is idle for longer than one trial.
    """
    once = {step.address: (point, step) for point, step in reversed(waiting)}  # two names of one file are one training
    items = [Waiting(point, step, trial_resources(config, point.weak_n)) for point, step in longest_first(list(once.values())[::-1])]
    show = _board([item.point.label for item in items])
    groups, alone = [i for i in items if i.resources.num_workers], [i for i in items if not i.resources.num_workers]
    for part in (groups, alone):
        if part:
            import ray

            # by reference: the function itself is stored with every trial's actor, and must stay small at 10,000 points
            by_label, common = {item.point.label: ray.put(item) for item in part}, ray.put((store, execution))
            resources = {item.point.label: item.resources for item in part}
            fit_trials(partial(_trial, by_label=by_label, common=common), resources, config.compute.max_failures, folder, show, may_come)
    metrics.forget("trials")
    metrics.forget("seconds_left", stage="sweep")
    built = store.find_all(item.step for item in items)
    failed = [item for item in items if item.step.address not in built]
    for item in failed:
        say(f"failed: {item.point.label}: {_failure(store, item.step)}")
    return [item.point for item in failed]


def _board(labels: Sequence[str]) -> Callable[[str, str], None]:
    """Shows the trials of all fits by state, in the log and as metrics."""
    progress = track("sweep: points", len(labels))
    states = dict.fromkeys(labels, "waiting")
    counts = {"waiting": len(states), "running": 0, "done": 0, "failed": 0}

    def show(label: str, state: str) -> None:
        counts[states[label]] -= 1
        counts[state] += 1
        states[label] = state
        for name, number in counts.items():
            metrics.record("trials", number, state=name)
        if state in ("done", "failed"):
            metrics.record("seconds_left", progress(counts["done"] + counts["failed"], f"{label} {state}"), stage="sweep")

    return show


def longest_first(waiting: Sequence[tuple[SweepPoint, Step]]) -> list[tuple[SweepPoint, Step]]:
    """By the FLOPs of their trainings, most first; equal ones stay in order."""
    return sorted(waiting, key=lambda each: -step_cost(each[1].inputs["segmentation"], {}, 0.0).flops)


def fit_trials(
    work: Callable[[Mapping[str, Any]], None],
    resources: Mapping[str, TrainResources],
    max_failures: int,
    folder: str,
    show: Callable[[str, str], None],
    may_come: Sequence[Node] = (),
) -> None:
    """Run one trial for each label, started in that order; no scheduler, no early stopping.

    Args:
        work: gets {"point": label}.
        resources: what each asks for, by label; all with workers, or all without.
        max_failures: how often a trial whose process or node was lost is started again.
        folder: for Tune's own bookkeeping.
        may_come: nodes that an autoscaler may add; worker groups are started for them too, so that it sees the demand.
        show: told (label, running | done | failed) of each trial that starts or ends.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    from ray import tune
    from ray.tune import FailureConfig, RunConfig, TuneConfig

    def asked(space: Mapping[str, Any]) -> Any:
        own = resources[space["point"]]
        bundle = {"CPU": GROUP_DRIVER_CPUS} if own.num_workers else {"CPU": own.num_cpus, **({"GPU": own.num_gpus} if own.num_gpus else {})}
        return tune.PlacementGroupFactory([bundle])

    tuner = tune.Tuner(
        tune.with_resources(work, asked),
        param_space={"point": tune.grid_search(list(resources))},
        tune_config=TuneConfig(reuse_actors=True, max_concurrent_trials=_groups_that_fit(list(resources.values()), may_come)),
        run_config=RunConfig(
            name="sweep",
            storage_path=folder,
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[_trial_states(show)],
            verbose=0,
        ),
    )
    tuner.fit()


def _groups_that_fit(resources: Sequence[TrainResources], may_come: Sequence[Node]) -> int | None:
    """How many of the largest worker groups the cluster may hold at once, at least one; None for trials without workers."""
    if not resources[0].num_workers:
        return None
    import ray

    have: dict[str, float] = dict(ray.cluster_resources())  # type: ignore[no-untyped-call]
    for node in may_come:
        have |= {kind: have.get(kind, 0.0) + node.get(kind, 0.0) for kind in ("CPU", "GPU")}
    cpus = max(r.num_workers * r.num_cpus for r in resources) + GROUP_DRIVER_CPUS
    gpus = max(r.num_workers * r.num_gpus for r in resources)
    room = have.get("CPU", 0.0) // cpus
    return max(1, int(min(room, have.get("GPU", 0.0) // gpus) if gpus else room))


def _trial_states(show: Callable[[str, str], None]) -> Any:
    """A Tune callback that tells the state of every trial that starts or ends."""
    from ray.tune import Callback

    class States(Callback):
        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            show(trial.config["point"], "running")

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            show(trial.config["point"], "done" if (trial.last_result or {}).get("built", True) else "failed")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            show(trial.config["point"], "failed")

    return States()


def _trial(space: Mapping[str, Any], by_label: Mapping[str, Any], common: Any) -> None:
    """One trial: train and evaluate one point. A fault of the point itself is written down, not raised (raising retries).

    `by_label` refers to a Waiting for each label, `common` to (Store, Execution)."""
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
        build(item.step, store, replace(execution, report=report, segmentation=item.resources, label=item.point.label), TRIAL_STEPS)
    except InputError as error:
        write_failure(store, item.step, error)
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
