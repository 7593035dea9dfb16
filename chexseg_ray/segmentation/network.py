"""The segmentation network, from segmentation_models_pytorch, with nothing downloaded. The paper's is DeepLabv3+ (Chen et al. 2018) on ResNet18."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def build_network(architecture: str, encoder: str, num_pathologies: int, options: Mapping[str, Any]) -> nn.Module:
    """A network with random weights: float [B, 3, S, S] to logits float [B, K, S, S].

    Args:
        architecture: one of smp's: deeplabv3plus, unet, fpn, ...
        encoder: an encoder of smp, or of timm as `tu-...`.
        num_pathologies: K, one channel of logits a pathology.
        options: for DeepLab `output_stride` (8 or 16, of the encoder) and `atrous_rates` (three dilations); nothing else is read.

    Raises:
        ValueError: smp has no such architecture or encoder, or the two do not go together.
    """
    import segmentation_models_pytorch as smp

    if encoder.startswith("timm-"):
        raise ValueError(f"{encoder}: smp has given up these names: write tu-{encoder.removeprefix('timm-')}")
    deeplab = architecture.startswith("deeplab")
    own = {"encoder_output_stride": options["output_stride"], "decoder_atrous_rates": tuple(options["atrous_rates"])} if deeplab else {}
    if architecture not in smp.MODEL_ARCHITECTURES_MAPPING:
        raise ValueError(f"smp has no architecture {architecture!r}, only {', '.join(smp.MODEL_ARCHITECTURES_MAPPING)}")
    try:
        model: nn.Module = smp.create_model(architecture, encoder_name=encoder, encoder_weights=None, classes=num_pathologies, **own)
    except (KeyError, ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"smp builds no {architecture} on {encoder!r}: {' '.join(str(error).strip(chr(39)).split())[:160]}") from None
    return model


def check_network(architecture: str, encoder: str, size: int, options: Mapping[str, Any]) -> None:
    """Pass two empty images of size x size through a network.

    Raises:
        ValueError: it cannot be built, or not for images of that size.
    """
    model = build_network(architecture, encoder, 1, options)
    try:
        with torch.no_grad():
            shape = tuple(model(torch.zeros(2, 3, size, size)).shape)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ValueError(f"{architecture} on {encoder} takes no images of {size} px: {' '.join(str(error).split())[:160]}") from None
    if shape != (2, 1, size, size):
        raise ValueError(f"{architecture} on {encoder} turns images of {size} px into maps of {shape[2]} x {shape[3]}")


def count_network(name: str, size: int) -> tuple[float, float]:
    """GFLOP (2 x multiply-adds) of one forward pass of one image of size x size, and million weights.

    Args:
        name: `architecture/encoder`, DeepLab with output stride 16; or an encoder alone.
        size: in pixels.

    Raises:
        ValueError: as check_network.
    """
    import segmentation_models_pytorch as smp
    from torch.utils.flop_counter import FlopCounterMode

    architecture, _, encoder = name.rpartition("/")
    if architecture:
        network = build_network(architecture, encoder, 10, {"output_stride": 16, "atrous_rates": (12, 24, 36)})
    else:
        try:
            network = smp.encoders.get_encoder(encoder, weights=None)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"smp has no encoder {encoder!r} ({' '.join(str(error).split())[:80]})") from None
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ValueError(f"{name} takes no images of {size} px: {' '.join(str(error).split())[:160]}") from None
    return counter.get_total_flops() / 1e9, sum(p.numel() for p in network.parameters()) / 1e6
