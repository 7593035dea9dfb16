"""Errors of every network step on this device: gpu.py's part `right`, not a script.

Compares the device with the CPU on random inputs: the gradients and losses of one update of each training with the
CPU's in float64, and the outputs of each inference step with the CPU's in float32. The device computes each twice:
without TF32, and as PyTorch is set by default. How large an error may be depends on the network, because BatchNorm
amplifies rounding. So the CPU's own errors are measured too: in float32, and in float64 with the inputs of every
convolution rounded as TF32 rounds them. gpu.py prints the relative errors.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from training_steps import (
    BATCH_SIZES,
    ORIGINAL,
    PATHOLOGIES,
    WALKS,
    Setup,
    make_step,
    random_pixels,
    segmentation_network,
)

from chexseg_ray.data.images import content_box
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.pseudo.classifier import build_classifier
from chexseg_ray.pseudo.gradcam import grad_cam
from chexseg_ray.pseudo.irnet import IRNet, boundary_maps
from chexseg_ray.pseudo.propagation import propagate_cams
from chexseg_ray.segmentation.training import predict


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in convolutions while the block runs."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let torch make floating-point tensors of another type while the block runs, and float32 after it."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def _as_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """Round to TF32's 10 bits of mantissa."""
    bits = tensor.float().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(tensor.dtype)


class _RoundInput(torch.autograd.Function):
    """Rounds what enters a convolution; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return _as_tf32(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]


class _RoundGradient(torch.autograd.Function):
    """Rounds the gradient that enters a convolution's backward pass."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return _as_tf32(grads[0])


class RoundedConvolutions(TorchFunctionMode):
    """While entered, convolutions compute with inputs, weights and gradients rounded to TF32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one function of torch."""
        if func not in (torch.conv2d, torch.nn.functional.conv2d):
            return func(*args, **(kwargs or {}))
        rounded = [_RoundInput.apply(tensor) for tensor in args[:2]]
        return _RoundGradient.apply(func(*rounded, *args[2:], **(kwargs or {})))


def measure_errors(bench: Any) -> Iterator[tuple[str, dict[str, float]]]:
    """Compare each training step's gradients and losses, and each inference step's outputs, with the CPU's.

    Args:
        bench: gpu.py's Bench.

    Yields:
        The step's or output's name and its relative errors, without TF32 (`exact`) and with PyTorch's settings
        (`default`); of trainings also the CPU's, in float32 (`cpu`) and with convolutions rounded to TF32 (`cpu_tf32`).
    """
    size = 64 if bench.tiny else 96
    for name in BATCH_SIZES:
        setup = bench.setup(name, size=size, batch_size=4, dropout=False)
        exact_setup = replace(setup, device=torch.device("cpu"), dtype=torch.float64)
        reference, reference_loss = _gradients(exact_setup, name, fast=False)
        errors = {}
        for kind, fast in (("exact", False), ("default", True)):
            gradient, loss = _gradients(setup, name, fast)
            errors[f"{kind}_gradient"] = _relative(gradient, reference)
            errors[f"{kind}_loss"] = _relative(loss, reference_loss)
        on_cpu = replace(exact_setup, dtype=torch.float32)
        errors["cpu_gradient"] = _relative(_gradients(on_cpu, name, fast=False)[0], reference)
        with RoundedConvolutions():
            errors["cpu_tf32_gradient"] = _relative(_gradients(exact_setup, name, fast=False)[0], reference)
        yield name, errors
    inference = _inference(size)
    with tf32(False):
        wanted, exact = inference(torch.device("cpu")), inference(bench.device)
    default = inference(bench.device)
    for name, want in wanted.items():
        yield name, {"exact": _relative(exact[name], want), "default": _relative(default[name], want)}


def _gradients(setup: Setup, name: str, fast: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all gradients and losses of the first update, flat, in float64 on the CPU."""
    model, update = make_step(name, setup)
    with default_dtype(setup.dtype), tf32(fast):
        losses = update(0).reshape(-1).double().cpu()
    gradients = [p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None]
    return torch.cat(gradients), losses


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the norm of the difference, as a share of the norm of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


def _inference(size: int) -> Callable[[torch.device], dict[str, torch.Tensor]]:
    """Make a function that runs every inference step on a device, in float32.

    Args:
        size: pixels of a side.
    """
    rng, grid = np.random.default_rng(1), size // 4
    pixels = torch.from_numpy(random_pixels(rng, 4, size))
    torch.manual_seed(0)
    classifier = build_classifier("densenet121", PATHOLOGIES, "ignore").eval()
    irnet, segmenter = IRNet(True).eval(), segmentation_network().eval()
    maps = torch.from_numpy(rng.random((4, PATHOLOGIES, size // 32, size // 32))).float()
    boxes = [content_box(*ORIGINAL, size).on_grid(size, grid)] * 4
    field = torch.from_numpy(rng.random((4, grid, grid))).float()

    def outputs(device: torch.device) -> dict[str, torch.Tensor]:
        """Move the networks to the device and return every step's outputs by name, as float64 on the CPU."""
        x = network_input(pixels.to(device), "imagenet")
        logits, cams = grad_cam(classifier.to(device), x, PATHOLOGIES)
        boundary, _ = boundary_maps(irnet.to(device), x, True)
        scores = torch.from_numpy(predict(segmenter.to(device), pixels.numpy(), "imagenet", device))
        out = {"logits": logits, "cams": cams, "boundary": boundary, "scores": scores}
        low, same = (
            maps.to(device),
            field.to(device),
        )  # both sides are given the same boundaries, so that only the walk is compared
        for walk, settings in WALKS.items():
            out[f"walk {walk}"] = propagate_cams(low, same, None, boxes, settings, 0.0)
        still = torch.zeros(4, 2, grid, grid, device=device)
        out["walk by instance"] = propagate_cams(low, same, still, boxes, WALKS["chexseg"], 0.3)
        return {name: tensor.detach().double().cpu() for name, tensor in out.items()}

    return outputs
