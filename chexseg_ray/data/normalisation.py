"""Input statistics, which travel with the weights that were trained on them, and the one way pixels enter a network."""

from functools import cache

import torch

# mean and standard deviation of each input channel, for pixels in [0, 1]
STATISTICS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # many of timm's ImageNet weights use these
    "chexpert": ((0.5020, 0.5020, 0.5020), (0.085585, 0.085585, 0.085585)),
}


def network_input(pixels: torch.Tensor, normalisation: str) -> torch.Tensor:
    """Convert grey pixels to a network's input.

    Args:
        pixels: [B, S, S], any type, 0 to 255; letterbox padding (0) is treated like any other pixel.
        normalisation: key of `STATISTICS`.

    Returns:
        [B, 3, S, S] of the default float type: (pixels / 255 - mean) / standard deviation.
    """
    mean, std = _constants(normalisation, pixels.device, torch.get_default_dtype())
    grey = pixels.unsqueeze(1).to(mean.dtype) / 255.0
    return (grey - mean) / std


@cache
def _constants(normalisation: str, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [1, 3, 1, 1], copied to a device once: a GPU waits for each copy."""
    mean, std = STATISTICS[normalisation]
    return (
        torch.tensor(mean, dtype=dtype, device=device).view(1, 3, 1, 1),
        torch.tensor(std, dtype=dtype, device=device).view(1, 3, 1, 1),
    )
