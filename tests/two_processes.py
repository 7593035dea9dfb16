"""Run a function as the two replicas of a gloo group, each in its own process."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from chexseg_ray.engine.replicas import Replica

Result = dict[str, torch.Tensor]


def run_as_two(
    work: Callable[[Replica], dict[str, Result]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Result]]:
    """Run `work` in two processes with one thread each.

    Args:
        work: takes its replica and returns {name: tensors}; pickle must find it by name.
        folder: an empty folder, where the processes meet and leave their results.
        monkeypatch: keeps gloo on the loopback.

    Returns:
        What `work` returned, by rank.
    """
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    spawn(_replica, (work, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def _replica(rank: int, work: Callable[[Replica], dict[str, Result]], folder: str) -> None:
    """Be one of the two processes: join the group, work, and leave the result as a file."""
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(work(Replica.here()), f"{folder}/{rank}.pt")
    distributed.barrier()  # so that neither process ends while the other still needs it
    # The usual end destroys gloo's threads, and sometimes one of them aborts the process ("terminate called ...")
    os._exit(0)
