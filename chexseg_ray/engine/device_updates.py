"""Do a training's updates on its device: one operator after another, or each update as one CUDA graph.

At the paper's sizes a GPU finishes kernels faster than its host starts them. The host starts a graph, which holds the
hundreds of kernels of an update, with one call.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from chexseg_ray.engine.devices import to_device
from chexseg_ray.engine.replicas import Replica
from chexseg_ray.updates.precision import in_precision

_WARM_UP = 3  # updates before the capture, in which cuDNN and cuBLAS get their memory


def device_updates(
    update: Callable[..., torch.Tensor],
    optimiser: torch.optim.Optimizer,
    modules: Sequence[nn.Module],
    *,
    device: torch.device,
    replica: Replica,
    num_replicas: int,
    precision: str,
    seed: int,
    graph: bool,
) -> Callable[..., torch.Tensor]:
    """Make the function that moves a batch to the device and does an update there.

    Args:
        update: takes a Pass, which runs a network in train mode, and the batch's tensors; returns losses.
        optimiser: changed by the update.
        modules: the networks that the update changes.
        device: where they are.
        replica: this process.
        num_replicas: the number of parts in which BatchNorm sees a batch.
        precision: of the networks' passes, float32 | bf16.
        seed: of dropout.
        graph: whether an update is one CUDA graph. That needs a GPU, one process and one replica, because dropout is
            seeded before a graph and not inside; other updates are done one operator after another.

    Returns:
        A function of (the update's number, the batch's tensors on the CPU); returns the losses on the device.
    """
    if graph and device.type == "cuda" and num_replicas == replica.count == 1:
        captured = CapturedUpdate(partial(update, in_precision(_plain_pass, precision)), optimiser, modules)

        def replay(number: int, *batch: torch.Tensor) -> torch.Tensor:
            replica.seed((seed, number))
            return captured(*batch)

        return replay

    def do(number: int, *batch: torch.Tensor) -> torch.Tensor:
        def pass_(network: nn.Module, inputs: torch.Tensor, *role: int) -> torch.Tensor:
            return replica.forward(network, inputs, num_replicas, (seed, number, *role))

        return update(in_precision(pass_, precision), *(to_device(tensor, device) for tensor in batch))

    return do


def _plain_pass(network: nn.Module, inputs: torch.Tensor, *_: int) -> torch.Tensor:
    out: torch.Tensor = network(inputs)
    return out


class CapturedUpdate:
    """An update on inputs of fixed shapes, captured at its first call and whenever a learning rate has changed.

    Args:
        update: takes tensors on the GPU, changes modules and optimiser, and returns losses; it must not wait for the
            GPU, nor depend on anything else that changes.
        optimiser: a fused one.
        modules: all networks whose weights and statistics the update changes.
    """

    def __init__(
        self, update: Callable[..., torch.Tensor], optimiser: torch.optim.Optimizer, modules: Sequence[nn.Module]
    ) -> None:
        self._update, self._optimiser, self._modules = update, optimiser, modules
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rates: list[float] = []
        self._inputs: list[torch.Tensor] = []
        self._losses: torch.Tensor

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Do one update.

        Args:
            inputs: of the same shapes and types at every call, on the CPU.

        Returns:
            The losses, a new tensor on the GPU.
        """
        rates = [group["lr"] for group in self._optimiser.param_groups]
        if self._graph is None or rates != self._rates:
            self._rates = rates
            self._capture(inputs)
        for own, new in zip(self._inputs, inputs, strict=True):
            own.copy_(new.pin_memory(), non_blocking=True)
        assert self._graph is not None
        self._graph.replay()
        return self._losses.clone()

    def _capture(self, inputs: Sequence[torch.Tensor]) -> None:
        """Capture the update on tensors of its own, and leave networks, optimiser and random numbers as they were."""
        device = torch.device("cuda")
        self._graph = None  # frees the memory of the last one
        self._inputs = [to_device(tensor, device) for tensor in inputs]
        for group in self._optimiser.param_groups:
            group["capturable"] = True
        with self._unchanged():
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._update(*self._inputs)
            torch.cuda.current_stream().wait_stream(side)
            self._optimiser.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._losses = self._update(*self._inputs)
        self._graph = graph

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Put back, after the block, all numbers that updates change, into the tensors that the graph has captured."""
        generator = torch.cuda.get_rng_state()
        weights = [{name: t.clone() for name, t in module.state_dict().items()} for module in self._modules]
        state = self._optimiser.state
        before = {p: {name: t.clone() for name, t in values.items()} for p, values in state.items()}
        yield
        for module, saved in zip(self._modules, weights, strict=True):
            module.load_state_dict(saved)
        with torch.no_grad():
            for parameter, values in state.items():
                for name, tensor in values.items():
                    if parameter in before:
                        tensor.copy_(before[parameter][name])
                    else:
                        tensor.zero_()  # as the optimiser makes it at its first step
        torch.cuda.set_rng_state(generator)
