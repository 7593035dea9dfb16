"""Data-parallel replicas: which part of a batch each process has, and what travels between them.

BatchNorm and dropout see a batch that R replicas share in R parts. That changes the numbers, so R (`num_replicas`)
belongs to a training's identity. The number of processes does not: one process passes R parts one after another, R
processes pass one each, and both compute the same up to rounding (tests, in float64).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Replica:
    """One of `count` processes that train one network together; rank 0 of 1 in a process that trains by itself."""

    rank: int
    count: int

    @classmethod
    def here(cls) -> "Replica":
        """This process in torch's process group; rank 0 of 1 without a group."""
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(0, 1)
        return cls(distributed.get_rank(), distributed.get_world_size())

    def share(self, size: int) -> slice:
        """This process's consecutive part of a batch.

        Args:
            size: the batch's size, a multiple of `count`.
        """
        length = size // self.count
        return slice(self.rank * length, (self.rank + 1) * length)

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes.

        Args:
            tensors: of equal shapes and types in all processes; those of one type travel together.
        """
        if self.count == 1:
            return
        from torch import distributed

        by_type: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for group in by_type.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            distributed.all_reduce(flat)
            for tensor, total in zip(group, torch.split(flat, [tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(total.view(tensor.shape))

    def seed(self, seed: Sequence[int]) -> None:
        """Seed the dropout of a whole batch that passes in one part, as forward() does; of numbers `seed`."""
        torch.manual_seed(_mixed_seed(*seed, 0))

    def forward(self, model: nn.Module, inputs: torch.Tensor, num_replicas: int, seed: Sequence[int]) -> torch.Tensor:
        """A training network's output for this process's share of a batch.

        Args:
            model: in train mode. Each running statistic of BatchNorm becomes the mean of what the R parts would make of
                it.
            inputs: the share, float [B / count, ...].
            num_replicas: R, a multiple of `count`; this process passes R / count parts.
            seed: numbers from which, with the part's number, the seed of a part's dropout is made.

        Returns:
            The outputs of the share's rows, float [B / count, ...].
        """
        parts_here = num_replicas // self.count
        if num_replicas == 1:
            self.seed(seed)
            out: torch.Tensor = model(inputs)
            return out
        statistics = list(_running_statistics(model))
        before = [getattr(module, name) for module, name in statistics]
        batch_counts = {module: module.num_batches_tracked + 1 for module, _ in statistics}
        sums = [torch.zeros_like(tensor) for tensor in before]
        outputs = []
        for i, part in enumerate(inputs.chunk(parts_here)):
            for (module, name), tensor in zip(statistics, before, strict=True):
                setattr(module, name, tensor.clone())  # a new tensor, as the backward pass keeps the old one
            torch.manual_seed(_mixed_seed(*seed, self.rank * parts_here + i))
            outputs.append(model(part))
            for total, (module, name) in zip(sums, statistics, strict=True):
                total += getattr(module, name)
        self.sum_(sums)
        for (module, name), total in zip(statistics, sums, strict=True):
            setattr(module, name, total / num_replicas)
            module.num_batches_tracked = batch_counts[module]
        return torch.cat(outputs)


def _running_statistics(model: nn.Module) -> Iterable[tuple[Any, str]]:
    """The running means and variances of the BatchNorms in train mode, as (module, name of the buffer)."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.running_mean is not None:
            yield module, "running_mean"
            yield module, "running_var"


def _mixed_seed(*numbers: int) -> int:
    """Mix numbers into a seed of 32 bits; torch's CPU generator reads no more than 32."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
