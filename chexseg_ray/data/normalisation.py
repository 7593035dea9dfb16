"""Input statistics, which travel with the weights that were trained on them, and the one way pixels enter a network."""

import torch

# mean and standard deviation per input channel of pixels in [0, 1]
STATISTICS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # of many of timm's ImageNet weights
    "chexpert": ((0.5020, 0.5020, 0.5020), (0.085585, 0.085585, 0.085585)),
}


def network_input(pixels: torch.Tensor, normalisation: str) -> torch.Tensor:
    """Grey [B, S, S] of 0 to 255 to [B, 3, S, S] of the default float type, normalised by the named statistics, padding (0) like any pixel."""
    mean, std = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in STATISTICS[normalisation])
    grey = pixels.unsqueeze(1).to(torch.get_default_dtype()) / 255.0
    return (grey - mean) / std
