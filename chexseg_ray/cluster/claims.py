"""One driver per store: a lock on a local root, a named actor on a cluster. A second driver learns who holds it."""

import asyncio
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chexseg_ray.errors import TransientError
from chexseg_ray.store.store import Store


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

    Args:
        store: the store whose root is claimed.

    Raises:
        TransientError: another driver holds it; names that driver, and since when it holds it.
    """
    if not store.is_local:
        yield
        return
    import fcntl

    path = Path(store.path(".claim"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise TransientError(f"{store.root}: in use by {stream.read().strip()}: wait for it, or stop it") from None
        stream.truncate(0)
        stream.write(who())
        stream.flush()
        yield


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
            raise TransientError(f"{store.root}: in use by {held_by}: wait for it, or stop it") from None
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
