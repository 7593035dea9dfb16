"""Fixed groups of rows through Ray Data: each group is one item in, one small result out, in group order.

A group's rows never change with the number of tasks, actors or retries, so batch composition (and with it the last bits
of a network's output) does not either; a task that is run twice writes the same file twice. A group's payload and its
result are plain JSON values, which travel as one text column; a result may also hold FileEntry objects. Errors that a
user can act on come back as data, past Ray's own wrapping and retries.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from chexseg_ray.config.resources import ActorCompute
from chexseg_ray.engine import prometheus
from chexseg_ray.engine.memory import enough_memory
from chexseg_ray.errors import InputError, TransientError, fault_of, raise_fault
from chexseg_ray.progress import track
from chexseg_ray.store.step import FileEntry

Row = dict[str, Any]
Read = Callable[[Any], list[bytes]]  # takes a payload, returns its files, whole
Work = Callable[[int, Any], Row]  # takes a group's number and its payload
ActorWork = Callable[[Any, list[bytes]], Row]  # takes a payload and its files
_ENTRY = "chexseg_ray file entry"  # the one key of a FileEntry as JSON


def group_slices(num_rows: int, group_rows: int) -> list[slice]:
    """Cut rows into consecutive slices.

    Args:
        num_rows: N >= 0.
        group_rows: rows of a slice; the last one may be shorter.
    """
    return [slice(start, min(start + group_rows, num_rows)) for start in range(0, num_rows, group_rows)]


def files_of(results: Sequence[Row]) -> list[FileEntry]:
    """Return the entries under `files` of all `results`, in their order."""
    return [entry for result in results for entry in result["files"]]


def rows_of(results: Sequence[Row]) -> int:
    """Add up `rows` over all `results`."""
    return sum(int(result["rows"]) for result in results)


def run_tasks(stage: str, what: str, payloads: Iterable[Any], work: Work, num_cpus: float) -> list[Row]:
    """Run `work` on each payload as a Ray Data task.

    Args:
        stage: for progress and metrics.
        what: follows the stage's name in progress lines.
        payloads: plain JSON values, one per group; may be a generator.
        work: returns plain JSON values and FileEntry objects, among them `rows`, the number of rows that it made.
        num_cpus: CPUs of one task.

    Returns:
        The results in the payloads' order.

    Raises:
        InputError: the first one, in group order, that `work` raised.
        TransientError: likewise, or a group did not come back.
    """
    items = _items(payloads)
    groups = _dataset(items).map(partial(_run_task, work), num_cpus=num_cpus)
    return _collect(stage, f"{stage}{what}", groups, len(items))


def run_actors(
    stage: str,
    what: str,
    payloads: Iterable[Any],
    read: Read,
    actor: Callable[..., ActorWork],
    arguments: Sequence[Any],
    resources: ActorCompute,
    reading_cpus: float,
    deterministic: bool = False,
) -> list[Row]:
    """Run `read` on each payload as a task, and its files through a pool of actors that each hold a model.

    Args:
        stage: for progress and metrics.
        what: follows the stage's name in progress lines.
        payloads: plain JSON values, one per group.
        read: reads a payload's files.
        actor: called with `arguments` once in each actor; what it returns is called with (payload, files).
        arguments: the actor's arguments.
        resources: what one actor asks for, and how many there may be.
        reading_cpus: CPUs of one reading task where actors have GPUs; elsewhere the actor itself reads.
        deterministic: whether actors use only kernels that give the same bytes in every run.

    Returns:
        The results in the payloads' order.

    Raises:
        InputError: the first one, in group order, that `read`, `actor` or the work raised.
        TransientError: likewise, or a group did not come back.
    """
    import ray

    items = _items(payloads)
    # Without GPUs both steps ask for the same, so Ray Data fuses the reading into the actor
    read_cpus = reading_cpus if resources.num_gpus else resources.num_cpus
    results = (
        _dataset(items)
        .map(partial(_run_read, read), num_cpus=read_cpus)
        .map(
            _GuardedActor,
            fn_constructor_args=(stage, actor, tuple(arguments), deterministic),
            compute=ray.data.ActorPoolStrategy(
                min_size=max(1, resources.min_actors), max_size=max(1, resources.max_actors)
            ),
            num_cpus=resources.num_cpus,
            num_gpus=resources.num_gpus,
        )
    )
    return _collect(stage, f"{stage}{what}", results, len(items))


def _items(payloads: Iterable[Any]) -> list[Row]:
    """One item per group; payloads become text one by one, so that 1,000,000 rows are never objects all at once."""
    return [{"group": group, "payload": json.dumps(payload)} for group, payload in enumerate(payloads)]


def _dataset(items: list[Row]) -> Any:
    """The items as a Ray data set with one block per item."""
    import ray

    return ray.data.from_items(items, override_num_blocks=len(items))


def _guarded(work: Callable[[], Row]) -> str:
    """The result as JSON, or the error that a user can act on."""
    try:
        return json.dumps({"result": work()}, default=_entry_as_json)
    except (InputError, TransientError) as error:
        return json.dumps(fault_of(error))


def _entry_as_json(value: object) -> dict[str, Any]:
    """What json.dumps calls with an object that it does not know."""
    if not isinstance(value, FileEntry):
        raise TypeError(f"{type(value).__name__} is not a plain JSON value")
    return {_ENTRY: asdict(value)}


def _entry_from_json(value: dict[str, Any]) -> Any:
    """The inverse of _entry_as_json; any other JSON object stays unchanged."""
    return FileEntry(**value[_ENTRY]) if _ENTRY in value else value


def _run_task(work: Work, row: Row) -> Row:
    """What a Ray Data task does with its item."""
    return {"group": row["group"], "json": _guarded(lambda: work(int(row["group"]), json.loads(row["payload"])))}


def _run_read(read: Read, row: Row) -> Row:
    """Add a payload's files to its item, one after another, or the fault that the actor passes on."""
    try:
        files = read(json.loads(row["payload"]))
    except (InputError, TransientError) as error:
        return {**row, "data": b"", "sizes": "[]", "fault": json.dumps(fault_of(error))}
    return {**row, "data": b"".join(files), "sizes": json.dumps([len(data) for data in files]), "fault": ""}


class _GuardedActor:
    """Makes its worker at the first item, so that a fault of the model's file is data too."""

    def __init__(
        self, stage: str, actor: Callable[..., ActorWork], arguments: Sequence[Any], deterministic: bool
    ) -> None:
        self._make: Callable[[], ActorWork] = partial(actor, *arguments)
        self._remedy = f"{stage}: ask for a larger part of a GPU (num_gpus), or lower its batch_size"
        if deterministic:
            from chexseg_ray.engine.devices import use_deterministic_algorithms

            use_deterministic_algorithms()
        self._worker: ActorWork | None = None

    def __call__(self, row: Row) -> Row:
        """The item's result, or its fault, as JSON."""
        if row["fault"]:
            return {"group": row["group"], "json": row["fault"]}
        return {"group": row["group"], "json": _guarded(partial(self._work, row))}

    def _work(self, row: Row) -> Row:
        """Cut the item's bytes into its files again, and work on them."""
        files, start = [], 0
        for size in json.loads(row["sizes"]):
            files.append(row["data"][start : start + size])
            start += size
        with enough_memory(self._remedy):
            if self._worker is None:
                self._worker = self._make()
            return self._worker(json.loads(row["payload"]), files)


def _collect(stage: str, label: str, dataset: Any, num_groups: int) -> list[Row]:
    """Run the data set and return its results in group order; raises the first fault among them."""
    show = track(label, num_groups)
    found: dict[int, Row] = {}
    for row in dataset.iter_rows():
        group = json.loads(row["json"], object_hook=_entry_from_json)
        found[int(row["group"])] = group
        prometheus.record("images", group.get("result", {}).get("rows", 0), stage=stage)
        prometheus.record("seconds_left", show(len(found), ""), stage=stage)
    prometheus.forget("seconds_left", stage=stage)
    if sorted(found) != list(range(num_groups)):
        raise TransientError(f"{label}: {len(found)} of {num_groups} groups came back: run again")
    for _, group in sorted(found.items()):
        raise_fault(group)
    return [found[number]["result"] for number in range(num_groups)]
