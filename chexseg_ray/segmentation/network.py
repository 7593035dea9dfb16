"""The segmentation network, from segmentation_models_pytorch (smp); nothing is downloaded.

The paper's network is DeepLabv3+ (Chen et al. 2018) with a ResNet18 encoder.
"""

from collections.abc import Sequence

import torch
from torch import nn

from chexseg_ray.data.encoder_names import check_encoder_name
from chexseg_ray.errors import shortened

_ATROUS_RATES = (12, 24, 36)  # the paper's


def _one_line(text: str, length: int = 160) -> str:
    """The first characters of a message, without line breaks."""
    return " ".join(text.split())[:length]


def build_network(
    architecture: str,
    encoder: str,
    num_pathologies: int,
    output_stride: int | None = 16,
    atrous_rates: Sequence[int] | None = _ATROUS_RATES,
) -> nn.Module:
    """Build a network with random weights.

    Args:
        architecture: one of smp's: deeplabv3plus, unet, fpn, ...
        encoder: one of smp's, or one of timm's as `tu-...`.
        num_pathologies: K, channels of the output.
        output_stride: 8 or 16, of the encoder; only DeepLab uses it.
        atrous_rates: three dilations of the pyramid; only DeepLab uses them.

    Returns:
        A network from float [B, 3, S, S] to logits float [B, K, S, S].

    Raises:
        ValueError: smp has no such architecture or encoder, or cannot combine them.
    """
    import segmentation_models_pytorch as smp

    check_encoder_name(encoder)
    options: dict[str, object] = {}
    if architecture.startswith("deeplab"):
        options = {"encoder_output_stride": output_stride, "decoder_atrous_rates": tuple(atrous_rates or ())}
    if architecture not in smp.MODEL_ARCHITECTURES_MAPPING:
        raise ValueError(
            f"smp has no architecture {shortened(architecture)!r}, only {', '.join(smp.MODEL_ARCHITECTURES_MAPPING)}"
        )
    try:
        model: nn.Module = smp.create_model(
            architecture, encoder_name=encoder, encoder_weights=None, classes=num_pathologies, **options
        )
    except (KeyError, ValueError, RuntimeError, TypeError, NotImplementedError) as error:
        reason = _one_line(str(error).strip("'"))  # a KeyError's message comes in quotes
        raise ValueError(f"smp builds no {architecture} on {encoder!r}: {reason}") from None
    return model


def check_network(
    architecture: str,
    encoder: str,
    size: int,
    output_stride: int | None = 16,
    atrous_rates: Sequence[int] | None = _ATROUS_RATES,
) -> None:
    """Check that a network accepts images of one size, by a pass of two empty ones.

    Args:
        architecture: as in build_network.
        encoder: as in build_network.
        size: side of the images in pixels.
        output_stride: as in build_network.
        atrous_rates: as in build_network.

    Raises:
        ValueError: the network cannot be built, does not accept the images, or returns maps of another size.
    """
    model = build_network(architecture, encoder, 1, output_stride, atrous_rates)
    try:
        with torch.no_grad():
            shape = tuple(model(torch.zeros(2, 3, size, size)).shape)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ValueError(f"{architecture} on {encoder} takes no images of {size} px: {_one_line(str(error))}") from None
    if shape != (2, 1, size, size):
        raise ValueError(f"{architecture} on {encoder} turns images of {size} px into maps of {shape[2]} x {shape[3]}")


def count_network(name: str, size: int) -> tuple[float, float]:
    """Count the operations of one forward pass of one image, and the weights.

    Args:
        name: `architecture/encoder` (DeepLab with output stride 16), or only an encoder.
        size: side of the image in pixels.

    Returns:
        GFLOP (2 x multiply-adds), and weights in millions.

    Raises:
        ValueError: the network cannot be built, or does not accept the image.
    """
    import segmentation_models_pytorch as smp
    from torch.utils.flop_counter import FlopCounterMode

    architecture, slash, encoder = name.partition("/")
    if slash:
        network = build_network(architecture, encoder, 10)
    else:
        check_encoder_name(name)
        try:
            network = smp.encoders.get_encoder(name, weights=None)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"smp has no encoder {name!r} ({_one_line(str(error), 80)})") from None
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise ValueError(f"{name} takes no images of {size} px: {_one_line(str(error))}") from None
    return counter.get_total_flops() / 1e9, sum(p.numel() for p in network.parameters()) / 1e6
