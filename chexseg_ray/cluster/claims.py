"""One driver per store: a lock on a local root, a named actor on a cluster. A second driver learns who holds it."""

import asyncio
import errno
import hashlib
import json
import os
import platform
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from chexseg_ray.cluster.machine import has_ended
from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.progress import one_line
from chexseg_ray.store.filesystem import storage
from chexseg_ray.store.store import Store

# flock's errors where a file system has no locks; Linux calls 95 both EOPNOTSUPP and ENOTSUP
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def submission_id() -> str | None:
    """The id of the submitted job that this process runs; None outside a job."""
    job_config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    submission: str | None = job_config.get("metadata", {}).get("job_submission_id")
    return submission


def who() -> str:
    """Describe this process, its host and its job, for a second driver of the same store."""
    submission = submission_id()
    job = f" of job {submission}" if submission else ""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return f"process {os.getpid()} on {platform.node()}{job} since {now}"


@contextmanager
def claim(store: Store) -> Iterator[None]:
    """Hold a local store root: a lock on `.claim` that dies with its process. Does nothing for any other root.

    Where the file system has no locks (Lustre without -o flock, NFS without lockd, some FUSE), the existence of
    `.claim.host` is the claim: it names the host and process, and a later driver of that host removes it once the
    process has ended.

    Args:
        store: the store whose root is claimed.

    Raises:
        InputError: `.claim` is a link or no file.
        TransientError: another driver holds it (names that driver, and since when it holds it), or the root cannot be
            written.
    """
    if not store.is_local:
        yield
        return
    import fcntl

    path = Path(store.path(".claim"))
    with ExitStack() as stack:
        with storage("claimed", store.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(_open_own(path))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _in_use(store, stream.read().decode(errors="replace")) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                stack.enter_context(_claim_by_file(store, path.with_name(".claim.host")))
            stream.truncate(0)
            stream.write(who().encode())
        yield


def _open_own(path: Path) -> IO[bytes]:
    """Open a file for reading and writing, or make it; raises InputError for a link, which might lead anywhere."""
    refused = InputError(f"{path}: is a link or no file, and this run would write into it: remove it")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise refused from None
    stream = os.fdopen(descriptor, "r+b", buffering=0)  # a full disk shows when it is written, not when it is closed
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        stream.close()
        raise refused
    return stream


@contextmanager
def _claim_by_file(store: Store, path: Path) -> Iterator[None]:
    """Hold a root by the existence of a file, which only one driver can make; raises as claim()."""
    mine = {"host": platform.node(), "pid": os.getpid(), "who": who()}
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            break
        except FileExistsError:
            holder = _holder(path)
            is_here, pid = holder.get("host") == platform.node(), holder.get("pid")
            if not (is_here and type(pid) is int and pid > 0 and has_ended(pid)):
                remedy = f"wait for it, or remove {path} if it has ended"
                raise _in_use(store, str(holder.get("who", "another driver")), remedy) from None
            _remove_ended(store, path, holder)
    else:
        raise _in_use(store, "another driver, which has just begun")
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as stream:
            stream.write(json.dumps(mine).encode())
        yield
    finally:
        path.unlink(missing_ok=True)


def _remove_ended(store: Store, path: Path, holder: Mapping[str, Any]) -> None:
    """Remove the claim of a driver that has ended; if another driver has just replaced it, put that back and raise."""
    aside = path.with_name(f".claim.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.rename(aside)
    except FileNotFoundError:  # another driver has removed it
        return
    found = _holder(aside)
    if found != holder:
        aside.rename(path)
        raise _in_use(store, str(found.get("who", "another driver")))
    aside.unlink()


def _holder(path: Path) -> dict[str, Any]:
    """What a claim's file says of its driver; empty where it is being written or is no such file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _in_use(store: Store, holder: str, remedy: str = "wait for it, or stop it") -> TransientError:
    return TransientError(one_line(f"{store.shown_root}: in use by {holder.strip()}: {remedy}"))


def describe_job(submission: str | None, **facts: str) -> None:
    """Add facts to the metadata of a submitted job, for the dashboard and `ray job list`.

    Args:
        submission: the job's id; with None nothing is done.
        **facts: texts by name.
    """
    if submission is None:
        return
    import ray

    # Ray has no public way to change the metadata of a running job
    from ray.dashboard.modules.job.common import JobInfoStorageClient

    worker: Any = ray._private.worker.global_worker
    client = JobInfoStorageClient(worker.gcs_client)

    async def add() -> None:
        info = await client.get_info(submission)
        if info is not None:
            await client.put_info(submission, replace(info, metadata={**(info.metadata or {}), **facts}))

    asyncio.run(add())


@contextmanager
def claim_on_cluster(store: Store, who: str) -> Iterator[None]:
    """Hold a store on one cluster: a named actor on the driver's node, which dies with its job.

    Args:
        store: the store whose root is claimed.
        who: text about this driver, which a second driver reads.

    Raises:
        TransientError: another job of the cluster holds it, or this node starts no actor.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayActorError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    location = f"{store.filesystem.type_name} {store.path('')}"  # two URIs of one location are one store
    name = f"store {hashlib.sha256(location.encode()).hexdigest()[:16]}"
    holder: Any = None
    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    for _ in range(3):
        try:
            remote: Any = ray.remote(num_cpus=0)(_Holder)
            holder = remote.options(name=name, namespace="chexseg_ray", scheduling_strategy=this_node).remote(who)
            ray.get(holder.who.remote(), timeout=60)
            break
        except (GetTimeoutError, RayActorError):
            raise TransientError(
                f"{store.root}: cannot be claimed, because this node starts no process: check its memory and run again"
            ) from None
        except ValueError:  # the name is taken
            try:
                held_by: Any = ray.get(ray.get_actor(name, namespace="chexseg_ray").who.remote(), timeout=20)
            except (ValueError, RayActorError):  # its holder has just ended
                continue
            except GetTimeoutError:
                held_by = "a job that does not answer"
            raise _in_use(store, str(held_by)) from None
    else:
        raise TransientError(f"{store.root}: other drivers claim it and release it at this moment: run again")
    try:
        yield
    finally:
        ray.kill(holder)


class _Holder:
    """The actor whose name is the claim."""

    def __init__(self, who: str) -> None:
        self._who = who

    def who(self) -> str:
        """The text about the driver that holds the claim."""
        return self._who
