"""The end of every update: the optimiser's step, which a loss that is not finite forbids."""

from collections.abc import Callable, Iterable

import torch

Forward = Callable[[torch.Tensor], torch.Tensor]  # a network's pass over this process's share of a batch
Pass = Callable[..., torch.Tensor]  # runs a network: takes (network, inputs), and numbers that tell two passes apart
Sum = Callable[[Iterable[torch.Tensor]], None]  # adds each tensor up over the processes that share a batch, in place


def step_if_finite(optimiser: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Take the optimiser's step, which changes nothing if a loss is not finite.

    Fused optimisers find that out on their device, so that the host does not wait for a GPU; others are told here.

    Args:
        optimiser: its gradients are there.
        loss: one or more losses, on the optimiser's device.
    """
    finite = torch.isfinite(loss.detach()).all()
    if all(group.get("fused") for group in optimiser.param_groups):
        optimiser.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]
        optimiser.step()
    elif finite:
        optimiser.step()
