"""Every step on pretended devices: tensors stay on one device, and what a GPU and its host are asked for stays small.

The counts are of fake tensors, which have shapes and devices but no values, so no GPU is needed.
"""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from studies import REPOSITORY


@pytest.fixture
def fake_devices(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import fake_devices

    return fake_devices


UPDATES = ("segmentation", "classifier densenet121", "classifier resnet18", "irnet", "irnet displacement", "moco")
INFERENCE = ("cams", "propagation chexseg", "propagation irn", "propagation instance", "prediction")
# At the paper's sizes; what was counted, and a little more
LAUNCHES = {
    "segmentation": 330,
    "classifier densenet121": 1600,
    "classifier resnet18": 250,
    "irnet": 1500,
    "irnet displacement": 2500,
    "moco": 400,
}
MEGABYTES = {
    "segmentation": 2.0,
    "classifier densenet121": 1.7,
    "classifier resnet18": 1.7,
    "irnet": 2.8,
    "irnet displacement": 2.8,
    "moco": 1.7,
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_stays_on_its_device_without_waits_and_with_few_launches(name: str, fake_devices: Any) -> None:
    watch = fake_devices.count(name, tiny=False)
    assert not watch.mixed
    assert dict(watch.syncs) == {}, "losses are read one update later"
    assert sum(watch.launches.values()) <= LAUNCHES[name]
    assert watch.copied["H2D"] <= 1e6 * MEGABYTES[name]
    assert watch.copied["D2H"] == 0


@pytest.mark.parametrize("name", ["segmentation R=2", "moco R=2", *INFERENCE])
def test_a_step_stays_on_its_device(name: str, fake_devices: Any) -> None:
    watch = fake_devices.count(name, tiny=True)
    assert not watch.mixed
    assert sum(watch.launches.values()) > 50


def count_or_refuse(fake_devices: Any, name: str) -> None:
    """Raise if a step mixes devices, whether PyTorch or the count finds it."""
    watch = fake_devices.count(name, tiny=True)
    assert not watch.mixed, "an operator was given tensors of two devices"


def on_the_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a tensor that it forgets on the CPU: zeros of its result's shape."""

    def forgets(*arguments: Any, **options: Any) -> Any:
        found = function(*arguments, **options)
        return torch.zeros(found.shape, dtype=found.dtype)

    return forgets


def constants_on_the_cpu(*_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)


MISTAKES = {
    "masks": ("segmentation", "training_steps", "unpacked"),
    "pixels": ("classifier resnet18", "chexseg_ray.pseudo.classifier", "network_input"),
    "views": ("moco", "chexseg_ray.pretraining.moco", "view_inputs"),
    "keys": ("moco", "chexseg_ray.pretraining.moco", "contrastive_loss"),
    "counts": ("irnet", "chexseg_ray.pseudo.pairs", "convolved_counts"),
    "bits": ("irnet", "chexseg_ray.pseudo.pairs", "_bits"),
    "scores": ("prediction", "chexseg_ray.segmentation.training", "network_input"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_tensor_that_is_left_on_the_cpu_is_found(
    what: str, fake_devices: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, module, function = MISTAKES[what]
    owner: Any = importlib.import_module(module)
    wrong = on_the_cpu(getattr(owner, function))
    if what == "keys":
        right = owner.contrastive_loss
        wrong = lambda queries, keys, *more: right(queries, torch.zeros(keys.shape), *more)  # noqa: E731
    monkeypatch.setattr(owner, function, wrong)
    with pytest.raises((RuntimeError, AssertionError), match="device"):
        count_or_refuse(fake_devices, name)


def test_constants_that_are_left_on_the_cpu_are_found(fake_devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: Any = constants_on_the_cpu
    wrong.cache_clear = lambda: None
    monkeypatch.setattr("chexseg_ray.data.normalisation._constants", wrong)
    with pytest.raises((RuntimeError, AssertionError), match="device"):
        count_or_refuse(fake_devices, "cams")


def test_a_wait_in_an_update_is_counted(fake_devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import training_steps

    right = training_steps.segmentation_update

    def reads_its_loss(*arguments: Any) -> torch.Tensor:
        loss = right(*arguments)
        float(loss)
        return loss

    monkeypatch.setattr(training_steps, "segmentation_update", reads_its_loss)
    assert sum(fake_devices.count("segmentation", tiny=True).syncs.values()) == 1
