"""Fixed groups of rows through Ray Data: each group is one item in, one small result out, in group order.

A group's rows never change with the number of tasks, actors or retries, so batch composition (and with it the last bits of
a network's output) does not either; a task that is run twice writes the same file twice.
"""

from collections.abc import Callable, Sequence
from typing import Any

from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.progress import track
from chexseg_ray.stages.execution import ActorResources

Row = dict[str, Any]


def group_slices(num_rows: int, group_rows: int) -> list[slice]:
    """Consecutive slices of at most group_rows rows."""
    return [slice(start, min(start + group_rows, num_rows)) for start in range(0, num_rows, group_rows)]


def run_tasks(label: str, items: Sequence[Row], work: Callable[[Row], Row], num_cpus: float) -> list[Row]:
    """Run `work` ({group: i, ...} -> {group: i, ...}) on each item as Ray Data tasks. Results in group order."""
    import ray

    groups = ray.data.from_items(list(items), override_num_blocks=len(items))
    return _collect(label, groups.map(work, num_cpus=num_cpus), len(items))


def run_actors(
    label: str,
    items: Sequence[Row],
    read: Callable[[Row], Row],
    actor: type[Any],
    arguments: Sequence[Any],
    resources: ActorResources,
    read_cpus: float,
) -> list[Row]:
    """Run `read` as tasks, streamed into a pool of actors that each hold a model. Results in group order."""
    import ray

    groups = ray.data.from_items(list(items), override_num_blocks=len(items))
    pool = ray.data.ActorPoolStrategy(min_size=resources.min_actors, max_size=resources.max_actors)
    results = groups.map(read, num_cpus=read_cpus).map(
        actor,
        fn_constructor_args=tuple(arguments),
        compute=pool,
        num_cpus=resources.num_cpus,
        num_gpus=resources.num_gpus,
    )  # fmt: skip
    return _collect(label, results, len(items))


def _collect(label: str, dataset: Any, num_groups: int) -> list[Row]:
    from ray.exceptions import RayTaskError, UserCodeException

    show = track(label, num_groups)
    rows: list[Row] = []
    try:
        for row in dataset.iter_rows():
            rows.append(row)
            show(len(rows), "")
    except (RayTaskError, UserCodeException) as error:
        raise _own_error(error) from error
    rows.sort(key=lambda row: int(row["group"]))
    if [int(row["group"]) for row in rows] != list(range(num_groups)):
        raise TransientError(f"{label}: {len(rows)} of {num_groups} groups came back: run again")
    return rows


def _own_error(error: BaseException) -> BaseException:
    """The InputError or TransientError that a task raised, unwrapped from Ray's errors; else the error itself."""
    seen: BaseException | None = error
    while seen is not None:
        for candidate in (seen, getattr(seen, "cause", None)):
            for kind in (InputError, TransientError):
                if isinstance(candidate, kind):
                    return kind(str(candidate).strip().splitlines()[-1].split("Error: ", 1)[-1])
        seen = seen.__cause__
    return error
