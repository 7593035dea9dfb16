"""Data-parallel replicas: which part of a batch is whose, what travels between them, and the same numbers in one process.

A batch that R replicas share is seen by BatchNorm and dropout in R parts. That changes the numbers, so R (`num_replicas`) belongs to a
training's identity; in how many processes the parts lie does not: one process passes R parts one after another, R processes one each, and
both compute the same up to rounding (tests, in float64).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Replica:
    """One of `count` processes that train one network together; rank 0 of 1 in a process that trains alone."""

    rank: int
    count: int

    @classmethod
    def here(cls) -> "Replica":
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(0, 1)
        return cls(distributed.get_rank(), distributed.get_world_size())

    def share(self, size: int) -> slice:
        """This process's consecutive part of a batch of `size`, a multiple of `count`."""
        each = size // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum_(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.count > 1:
            from torch import distributed

            for tensor in tensors:
                assert tensor.is_contiguous(), "all_reduce adds up a strided tensor's memory, not its elements, without a word"
                distributed.all_reduce(tensor)

    def forward(self, model: nn.Module, inputs: torch.Tensor, num_replicas: int, seed: Sequence[int]) -> torch.Tensor:
        """A training network's output for this process's share of a batch.

        Args:
            model: in train mode. Its running statistics become the mean over the replicas of what each one's would be.
            inputs: the share, float [B / count, ...].
            num_replicas: R, a multiple of `count`; this process passes R / count parts.
            seed: numbers that dropout is a function of; each part has its own.
        """
        own = num_replicas // self.count
        if num_replicas == 1:
            torch.manual_seed(_mixed(*seed, 0))
            out: torch.Tensor = model(inputs)
            return out
        places = list(_running_statistics(model))
        before = [getattr(module, name) for module, name in places]
        counted = {module: module.num_batches_tracked + 1 for module, _ in places}
        total = [torch.zeros_like(tensor) for tensor in before]
        outputs = []
        for i, part in enumerate(inputs.chunk(own)):
            for (module, name), tensor in zip(places, before, strict=True):
                setattr(module, name, tensor.clone())  # a new tensor, as the backward pass keeps the old one
            torch.manual_seed(_mixed(*seed, self.rank * own + i))
            outputs.append(model(part))
            for summed, (module, name) in zip(total, places, strict=True):
                summed += getattr(module, name)
        self.sum_(total)
        for (module, name), summed in zip(places, total, strict=True):
            setattr(module, name, summed / num_replicas)
            module.num_batches_tracked = counted[module]
        return torch.cat(outputs)


def _running_statistics(model: nn.Module) -> Iterable[tuple[Any, str]]:
    """Where the running means and variances of the BatchNorms in train mode are."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.running_mean is not None:
            yield from ((module, name) for name in ("running_mean", "running_var"))


def _mixed(*numbers: int) -> int:
    """32 bits of some numbers; torch's CPU generator looks at no more than 32."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
