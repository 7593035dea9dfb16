"""What is left over in a store: listed, and on request deleted."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from chexseg_ray.cluster.claims import claim, claim_on_cluster, who
from chexseg_ray.cluster.session import RaySession, on_cluster
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.errors import InputError
from chexseg_ray.progress import aligned, say
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store
from chexseg_ray.study.sources import load_study
from chexseg_ray.upkeep.contents import addresses, files_below

_ATTEMPT = re.compile("[0-9a-f]{8}")
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp$")  # of Files.put
_OWN = re.compile(rf"record\.json|failed\.json|state|{_ATTEMPT.pattern}|.*{_TEMPORARY.pattern}")  # in a step's folder


@dataclass(frozen=True)
class LeftOver:
    """Something that no study needs.

    Args:
        kind: attempt | state | old error | step | temporary file | logs.
        path: of the file or folder, below the store's root.
        size: in bytes.
    """

    kind: str
    path: str
    size: int


def clean(store: Store, configs: Sequence[StudyConfig], delete: bool, unclaimed: bool) -> int:
    """List what is left over in a store, and delete it on request, while no run may use the store.

    Args:
        store: any store.
        configs: of the studies that are kept; without any, no whole step counts as left over.
        delete: whether to delete it.
        unclaimed: whether an object store may be cleaned without its cluster, because no run uses it.

    Returns:
        Exit code 0.

    Raises:
        InputError: a config's sources cannot be read, or an object store is to be cleaned without its cluster.
        TransientError: a run uses the store, or the storage does not answer.
    """
    named = {step.address for config in configs for step in load_study(config)[0].steps()}
    if not delete:
        _show(list(left_over(store, named)))
        say("nothing was deleted; a run that goes on now may be making some of it; --delete deletes it")
        return 0
    if not store.is_local and not on_cluster() and not unclaimed:
        rule = "an object store is claimed on the cluster that uses it"
        raise InputError(f"{store.root}: {rule}: submit this as a job, or add --unclaimed if no run uses the store")
    session = RaySession(dashboard=False, num_cpus=1)
    try:
        with ExitStack() as stack:
            stack.enter_context(claim(store))
            if on_cluster() and not unclaimed:
                session.start()
                stack.enter_context(claim_on_cluster(store, who()))
            found = list(left_over(store, named))
            _show(found)
            for item in found:
                _delete(store, item)
    finally:
        session.stop()
    say(f"deleted: {len(found)}")
    return 0


def _delete(store: Store, item: LeftOver) -> None:
    """Delete what is left over; of a whole step only what this program makes, its record first: half a step is none."""
    if item.kind != "step":
        store.delete(item.path)
        return
    for name in sorted(store.names(item.path), key=lambda name: name != "record.json"):
        if _OWN.fullmatch(name):
            store.delete(f"{item.path}/{name}")
    if not store.names(item.path):
        store.delete(item.path)


def left_over(store: Store, named: set[str]) -> Iterator[LeftOver]:
    """Yield what is left over in a store.

    Args:
        store: any store.
        named: addresses of the steps that are kept, with all that they are made from; if empty, every step is kept.
    """
    removed = set[str]()
    for address in addresses(store):
        record = store.find_address(address)
        files = files_below(store, address)
        if named and not _is_kept(address, record, named):
            removed.add(address.split("/")[1])
            yield LeftOver("step", address, sum(files.values()))
            continue
        yield from _left_in_step(address, record, files)
    for folder in store.names("tensorboard"):
        if folder[-12:] in removed:
            path = f"tensorboard/{folder}"
            yield LeftOver("logs", path, sum(files_below(store, path).values()))
    logs = files_below(store, ".ray")  # Ray Train's, of worker groups
    if logs:
        yield LeftOver("logs", ".ray", sum(logs.values()))
    for folder in ("report", "tensorboard"):
        for path, size in files_below(store, folder).items():
            if _TEMPORARY.search(path):
                yield LeftOver("temporary file", path, size)


def _is_kept(address: str, record: Record | None, named: set[str]) -> bool:
    """Whether a step is named, or is the prediction of a named evaluation's model, which is chosen by its results."""
    if address in named or not address.startswith("prediction/"):
        return address in named
    fingerprints = {other.split("/")[1] for other in named}
    return record is not None and set(record.inputs.values()) <= fingerprints


def _left_in_step(address: str, record: Record | None, files: dict[str, int]) -> Iterator[LeftOver]:
    """Yield what is left over in the folder of a step that is kept: an unfinished one keeps its training state."""
    sizes = dict[tuple[str, str], int]()
    for path, size in files.items():
        part = path.removeprefix(f"{address}/").split("/")[0]
        if _TEMPORARY.search(path):
            kind, where = "temporary file", path
        elif record is not None and part in ("state", "failed.json"):
            kind, where = "state" if part == "state" else "old error", f"{address}/{part}"
        elif _ATTEMPT.fullmatch(part) and (record is None or part != record.attempt):
            kind, where = "attempt", f"{address}/{part}"
        else:
            continue
        sizes[kind, where] = sizes.get((kind, where), 0) + size
    for (kind, where), size in sizes.items():
        yield LeftOver(kind, where, size)


def _show(found: Sequence[LeftOver]) -> None:
    """Print what is left over, and its size in all."""
    for line in aligned([[item.kind, item.path, f"{item.size / 1e6:.1f} MB"] for item in found]):
        say(line)
    say(f"left over: {len(found)}, {sum(item.size for item in found) / 1e6:.1f} MB")
