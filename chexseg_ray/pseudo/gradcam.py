"""Grad-CAM (paper eq. 1 and 2) in closed form: the maps of all pathologies from one forward and no backward pass.

Let A be the tensor that is averaged over its Z positions into the linear head. Then dy_c/dA^k_ij = w_ck / Z at every
position, so alpha = w_ck / Z and L = ReLU(sum_k w_ck A^k) / Z: exactly the classic CAM over Z (reference.md section 9).
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn


def head_weights(model: nn.Module, num_pathologies: int) -> torch.Tensor:
    """The weights of each pathology's score.

    Args:
        model: a classifier whose linear head is named `classifier` or `fc`.
        num_pathologies: K.

    Returns:
        float [K, C], detached; for a threeclass head the positive class's weights minus the negative class's.
    """
    head = cast(nn.Linear, getattr(model, "classifier", None) or getattr(model, "fc", None))
    weight = head.weight.detach()
    if weight.shape[0] == num_pathologies:
        return weight
    three = weight.view(num_pathologies, 3, -1)
    return three[:, 2] - three[:, 1]


def _densenet_features(
    features: nn.Sequential, images: torch.Tensor, fine_grid: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs of DenseNet's norm5, before its ReLU, for the logits and for the maps.

    Args:
        features: torchvision's DenseNet without its head.
        images: float [B, 3, S, S], normalised.
        fine_grid: leave the pooling of the last transition out for the maps.

    Returns:
        float [B, C, S / 32, S / 32], and the same tensor again or, with fine_grid, float [B, C, S / 16, S / 16].
    """
    stages = dict(features.named_children())
    x = images
    for name, stage in stages.items():
        if name == "transition3":
            break
        x = stage(x)
    transition = dict(stages["transition3"].named_children())
    x = transition["conv"](transition["relu"](transition["norm"](x)))

    def tail(y: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, stages["norm5"](stages["denseblock4"](y)))

    usual = tail(transition["pool"](x))
    return usual, (tail(x) if fine_grid else usual)


def _resnet_features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The features [B, C, S / 32, S / 32] that a ResNet averages, of images float [B, 3, S, S]."""
    x = images
    for name, stage in model.named_children():
        if name == "avgpool":
            break
        x = stage(x)
    return x


def grad_cam(
    model: nn.Module, images: torch.Tensor, num_pathologies: int, variant: str = "post_relu", fine_grid: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the logits and the Grad-CAM maps of all pathologies.

    Args:
        model: torchvision's DenseNet or ResNet in eval mode, with a linear head after a global average.
        images: float32 [B, 3, S, S], normalised.
        num_pathologies: K.
        variant: `post_relu` takes the features that are averaged (the paper's eq. 2 at the last feature map).
            `pre_relu` takes DenseNet's norm5 before its ReLU, like the hook of the released code; then alpha = w f / Z
            with f the share of positive positions.
        fine_grid: leave the pooling of DenseNet's last transition out for the maps, but not for the logits.

    Returns:
        Logits float32 [B, K], or [B, 3 K] for a threeclass head, and maps float32 [B, K, h, h] >= 0 with h = S / 32, or
        S / 16 with fine_grid.

    Raises:
        ValueError: the variant is `pre_relu` or `fine_grid` is set, and the network is not a DenseNet.
    """
    weights = head_weights(model, num_pathologies)
    features = getattr(model, "features", None)
    with torch.no_grad():
        if isinstance(features, nn.Sequential):
            usual, grid = _densenet_features(features, images, fine_grid)
        elif variant == "pre_relu" or fine_grid:
            raise ValueError("pre_relu and fine_grid need a DenseNet: use post_relu on the usual grid")
        else:
            usual = grid = _resnet_features(model, images)
        head = cast(nn.Module, getattr(model, "classifier", None) or getattr(model, "fc", None))
        logits = head(F.relu(usual).mean(dim=(2, 3)))
        cells = grid.shape[2] * grid.shape[3]
        if variant == "pre_relu":
            positive = (grid > 0).to(grid.dtype).mean(dim=(2, 3))
            maps = torch.einsum("ck,bk,bkhw->bchw", weights, positive, grid)
        else:
            maps = torch.einsum("ck,bkhw->bchw", weights, F.relu(grid))
        return logits, F.relu(maps) / cells
