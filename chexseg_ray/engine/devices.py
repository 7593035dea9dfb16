"""The device that a process computes on, which is what it asked Ray for, and what travels to it."""

import os
import shutil
import subprocess
from typing import Any

import torch

from chexseg_ray.errors import InputError


def device_for(num_gpus: float) -> torch.device:
    """Return the device of a process that asked for `num_gpus` GPUs, and hold it to that share of a GPU's memory.

    Ray does not hide GPUs from a process that asked for none, so what PyTorch sees does not matter then.

    Args:
        num_gpus: what it asked for; below 1, its share of one.

    Raises:
        InputError: it asked for a GPU, and PyTorch sees none.
    """
    if num_gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda or 'no version'}"
        remedy = "install a driver for this CUDA (580 or later for CUDA 13), or another torch, or set num_gpus: 0"
        raise InputError(f"a GPU was asked for, and PyTorch sees none ({built}; driver {_driver()}): {remedy}")
    if num_gpus < 1:
        torch.cuda.set_per_process_memory_fraction(num_gpus)
    return torch.device("cuda")


def _driver() -> str:
    """The version of NVIDIA's driver, as nvidia-smi prints it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "not found"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (printed.split() or ["unknown"])[0]


def device_facts(device: torch.device) -> dict[str, Any]:
    """Return what a record says of a device, by name: on a GPU also what decides the last bits of results.

    Args:
        device: where a training ran.
    """
    if device.type != "cuda":
        return {"device": str(device)}
    cudnn = torch.backends.cudnn
    return {
        "device": str(device),
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version(),  # type: ignore[no-untyped-call]
        "tf32_convolutions": cudnn.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def use_deterministic_algorithms() -> None:
    """Let PyTorch choose kernels that give the same bytes in every run; on a GPU the others are faster."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to a device; the host does not wait for a GPU.

    Args:
        tensor: on the CPU.
        device: the target.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
