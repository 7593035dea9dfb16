"""Run a function as the two replicas of a gloo group, each in a process of its own."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from chexseg_ray.stages.replicas import Replica

Result = dict[str, torch.Tensor]


def run_as_two(work: Callable[[Replica], dict[str, Result]], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Result]]:
    """What `work` returns in each of two processes with one thread each, by rank.

    Args:
        work: a function that pickles by name; gets its replica and returns {name: tensors}.
        folder: an empty one, where the processes meet and leave their results.
        monkeypatch: keeps gloo on the loopback.
    """
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    spawn(_replica, (work, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def _replica(rank: int, work: Callable[[Replica], dict[str, Result]], folder: str) -> None:
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(work(Replica.here()), f"{folder}/{rank}.pt")
    distributed.barrier()  # each has what it needs of the other
    os._exit(0)  # the usual way out destroys gloo's threads; now and then one of them aborts the process ("terminate called without...")
