"""DeepLabv3+ (Chen et al. 2018) from segmentation_models.pytorch, with nothing downloaded."""

from collections.abc import Sequence

from torch import nn


def build_deeplab(encoder: str, num_pathologies: int, output_stride: int, atrous_rates: Sequence[int]) -> nn.Module:
    """A DeepLabv3+ with random weights.

    Args:
        encoder: an smp encoder's name.
        num_pathologies: K output channels of logits, one a pathology.
        output_stride: 8 or 16, of the encoder.
        atrous_rates: the three dilation rates of the pyramid.
    """
    import segmentation_models_pytorch as smp

    model: nn.Module = smp.DeepLabV3Plus(
        encoder_name=encoder,
        encoder_weights=None,
        encoder_output_stride=output_stride,
        decoder_atrous_rates=tuple(atrous_rates),
        classes=num_pathologies,
        activation=None,
    )
    return model
