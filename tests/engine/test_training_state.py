"""A saved state restores weights and optimiser to the last bit, whatever the memory format of the weights."""

from pathlib import Path

import pytest
import torch
from torch import nn

from chexseg_ray.engine.training_state import Progress, StateKeeper
from chexseg_ray.store.step import Step
from chexseg_ray.store.store import Store
from chexseg_ray.updates.precision import in_precision, placed
from chexseg_ray.updates.step import step_if_finite


def fresh(precision: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 2, 3))
    model = placed(layers, torch.device("cpu"), precision).train()
    return model, torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)


def update(model: nn.Module, optimiser: torch.optim.Optimizer, precision: str, number: int) -> None:
    inputs = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(number))
    optimiser.zero_grad(set_to_none=True)
    loss = in_precision(lambda network, x: network(x), precision)(model, inputs).square().mean()
    loss.backward()
    step_if_finite(optimiser, loss)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_training_goes_on_from_its_state_byte_for_byte(precision: str, tmp_path: Path) -> None:
    store, step = Store.open(str(tmp_path)), Step("classifier", 1, {})
    model, optimiser = fresh(precision)
    keeper = StateKeeper(store.new_attempt(step), 0.0)
    for number in range(5):
        update(model, optimiser, precision, number)
        if number == 2:
            keeper.save(model, optimiser, Progress(3))
    again, its_optimiser = fresh(precision)
    assert StateKeeper(store.new_attempt(step), 0.0).load(again, its_optimiser).update == 3
    for parameter, values in its_optimiser.state.items():
        assert values["exp_avg"].stride() == parameter.stride()
    for number in range(3, 5):
        update(again, its_optimiser, precision, number)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
