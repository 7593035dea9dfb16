"""A process computes on what it asked Ray for, whatever PyTorch sees; too little memory of a GPU is one line."""

import pytest
import torch

from chexseg_ray.engine.devices import device_facts, device_for, to_device
from chexseg_ray.engine.memory import enough_memory
from chexseg_ray.errors import InputError


def test_a_process_that_asked_for_no_gpu_uses_none_though_pytorch_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda _: pytest.fail("touched the GPU"))
    assert device_for(0).type == "cpu"


@pytest.mark.parametrize(("num_gpus", "held"), [(0.25, [0.25]), (1, []), (2, [])])
def test_a_process_is_held_to_its_share_of_a_gpus_memory(
    num_gpus: float, held: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", shares.append)
    assert device_for(num_gpus).type == "cuda"
    assert shares == held


def test_a_gpu_that_pytorch_does_not_see_is_one_line_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", "13.2")
    monkeypatch.setattr("chexseg_ray.engine.devices._driver", lambda: "535.161.08")
    with pytest.raises(
        InputError, match=r"PyTorch sees none .*CUDA 13\.2; driver 535\.161\.08.*: install .*num_gpus: 0"
    ):
        device_for(0.5)


def test_too_little_memory_is_one_line_with_the_remedy() -> None:
    said = (
        "CUDA out of memory. Tried to allocate 18.63 GiB. GPU 0 has a total capacity of 79.18 GiB of which 78.66 GiB "
        "is free. 3.96 GiB allowed; Of the allocated memory 0 bytes is allocated by PyTorch. If reserved but "
        "unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
    )
    with (
        pytest.raises(InputError, match=r"^the GPU's memory is too small \(Tried to allocate 18\.63 GiB.*: lower b$"),
        enough_memory("lower b"),
    ):
        raise torch.OutOfMemoryError(said)
    with pytest.raises(RuntimeError, match="other"), enough_memory("lower b"):
        raise RuntimeError("other")


def test_a_cpu_gets_the_tensor_itself_and_says_no_more_than_its_name() -> None:
    tensor = torch.ones(3)
    assert to_device(tensor, torch.device("cpu")) is tensor
    assert device_facts(torch.device("cpu")) == {"device": "cpu"}
