"""Fixed groups of rows through Ray Data: each group is one item in, one small result out, in group order.

A group's rows never change with the number of tasks, actors or retries, so batch composition (and with it the last bits of
a network's output) does not either; a task that is run twice writes the same file twice.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from chexseg_ray.errors import InputError, TransientError, fault_of, raise_fault
from chexseg_ray.progress import track
from chexseg_ray.stages import metrics
from chexseg_ray.stages.execution import ActorResources

Row = dict[str, Any]


def group_slices(num_rows: int, group_rows: int) -> list[slice]:
    """Consecutive slices of at most group_rows rows."""
    return [slice(start, min(start + group_rows, num_rows)) for start in range(0, num_rows, group_rows)]


def run_tasks(stage: str, what: str, items: Sequence[Row], work: Callable[[Row], Row], num_cpus: float) -> list[Row]:
    """Run `work` on each item {group: i, ...} as Ray Data tasks; its results are plain JSON values, `rows` among them. Results in group order."""
    import ray

    groups = ray.data.from_items(list(items), override_num_blocks=len(items))
    return _collect(stage, f"{stage}{what}", groups.map(partial(_guarded, work), num_cpus=num_cpus), len(items))


def run_actors(
    stage: str,
    what: str,
    items: Sequence[Row],
    read: Callable[[Row], Row],
    actor: Callable[..., Callable[[Row], Row]],
    arguments: Sequence[Any],
    resources: ActorResources,
    read_cpus: float,
) -> list[Row]:
    """Run `read` as tasks, streamed into a pool of actors that each hold a model. Results in group order."""
    import ray

    groups = ray.data.from_items(list(items), override_num_blocks=len(items))
    results = groups.map(partial(_guarded_read, read), num_cpus=read_cpus).map(
        _GuardedActor,  # type: ignore[arg-type]
        fn_constructor_args=(actor, tuple(arguments)),
        compute=ray.data.ActorPoolStrategy(min_size=resources.min_actors, max_size=resources.max_actors),
        num_cpus=resources.num_cpus,
        num_gpus=resources.num_gpus,
    )
    return _collect(stage, f"{stage}{what}", results, len(items))


def _guarded(work: Callable[[Row], Row], row: Row) -> Row:
    """The result as one JSON column; an error that a user can act on comes back as data, past Ray's own wrapping."""
    try:
        result: Row = {"result": work(row)}
    except (InputError, TransientError) as error:
        result = dict(fault_of(error))
    return {"group": row["group"], "json": json.dumps(result)}


def _guarded_read(read: Callable[[Row], Row], row: Row) -> Row:
    """The row with what was read, or with the fault that the actor passes on."""
    try:
        return {**read(row), "fault": ""}
    except (InputError, TransientError) as error:
        return {**row, "data": b"", "fault": json.dumps(fault_of(error))}


class _GuardedActor:
    """Makes its worker at the first row, so that a fault of the model's file is data too."""

    def __init__(self, actor: Callable[..., Callable[[Row], Row]], arguments: Sequence[Any]) -> None:
        self._make: Callable[[], Callable[[Row], Row]] = partial(actor, *arguments)
        self._worker: Callable[[Row], Row] | None = None

    def __call__(self, row: Row) -> Row:
        if row["fault"]:
            return {"group": row["group"], "json": row["fault"]}
        return _guarded(self._work, row)

    def _work(self, row: Row) -> Row:
        if self._worker is None:
            self._worker = self._make()
        return self._worker(row)


def _collect(stage: str, label: str, dataset: Any, num_groups: int) -> list[Row]:
    show = track(label, num_groups)
    found: dict[int, Row] = {}
    for row in dataset.iter_rows():
        found[int(row["group"])] = own = json.loads(row["json"])
        metrics.record("images", own.get("result", {}).get("rows", 0), stage=stage)
        metrics.record("seconds_left", show(len(found), ""), stage=stage)
    metrics.forget("seconds_left", stage=stage)
    if sorted(found) != list(range(num_groups)):
        raise TransientError(f"{label}: {len(found)} of {num_groups} groups came back: run again")
    for _, row in sorted(found.items()):
        raise_fault(row)
    return [found[i]["result"] for i in range(num_groups)]
