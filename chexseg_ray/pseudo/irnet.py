"""IRNet (Ahn, Cho and Kwak 2019; paper appendix A.2): a frozen ResNet50, a boundary branch, and a displacement branch on request.

The trunk's strides are 2, 2, 2, 1, so its five stages lie at 1/4, 1/4, 1/8, 1/16 and 1/16 of the image's side; both branches end
at 1/4. The trunk gets no gradient and its BatchNorm stays frozen, so the branches do not touch each other.
"""

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

STRIDE = 4  # pixels of an image a cell of the outputs
_CHANNELS = (64, 256, 512, 1024, 2048)
_ZOOM = (1, 1, 2, 4, 4)  # from each stage's resolution to 1/4


class Trunk(nn.Module):
    """torchvision's ResNet50 without its head; the last stage keeps its resolution."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50

        network = resnet50(weights=None)
        network.layer4[0].conv2.stride = network.layer4[0].downsample[0].stride = (1, 1)
        self.layers = nn.ModuleDict({name: layer for name, layer in network.named_children() if name not in ("avgpool", "fc")})
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "Trunk":
        """Always in eval mode: its BatchNorm statistics are frozen."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The five stages of float [B, 3, S, S]: [B, C, h, w] with C of 64 to 2048, h of S / 4 to S / 16."""
        x, stages = images, []
        with torch.no_grad():
            for name, layer in self.layers.items():
                x = layer(x)
                if name == "maxpool" or name.startswith("layer"):
                    stages.append(x)
        return stages


def _branch(channels: int, width: int, groups: int, zoom: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width)]
    layers += [nn.Upsample(scale_factor=zoom, mode="bilinear", align_corners=False)] if zoom > 1 else []
    return nn.Sequential(*layers, nn.ReLU())


class BoundaryBranch(nn.Module):
    """One logit a cell: high on the borders between what is and what is not of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_branch(c, 32, 4, z) for c, z in zip(_CHANNELS, _ZOOM, strict=True))
        self.last = nn.Conv2d(5 * 32, 1, 1)

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        """float [B, h, w]."""
        joined = torch.cat([branch(x) for branch, x in zip(self.stages, stages, strict=True)], dim=1)
        return cast(torch.Tensor, self.last(joined)).squeeze(1)


class DisplacementBranch(nn.Module):
    """For every cell the way (dy, dx), in cells, to the centroid of the instance that it is a part of."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        widths, groups, zooms = (64, 128, 256, 256, 256), (8, 16, 16, 16, 16), (1, 1, 1, 2, 2)
        self.stages = nn.ModuleList(_branch(*each) for each in zip(_CHANNELS, widths, groups, zooms, strict=True))
        self.coarse = _branch(3 * 256, 256, 16, 2)
        self.fine = _branch(64 + 128 + 256, 256, 16, 1)
        self.last = nn.Conv2d(256, 2, 1, bias=False)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        """float [B, 2, h, w]; in eval mode without `mean`, as the losses leave D free up to a constant."""
        one, two, *rest = [branch(x) for branch, x in zip(self.stages, stages, strict=True)]
        out = self.last(self.fine(torch.cat([one, two, self.coarse(torch.cat(rest, dim=1))], dim=1)))
        return cast(torch.Tensor, out if self.training else out - self.mean.view(1, 2, 1, 1))


class IRNet(nn.Module):
    """The trunk and its branches."""

    def __init__(self, displacement: bool) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.branches = nn.ModuleDict({"boundary": BoundaryBranch()})
        if displacement:
            self.branches["displacement"] = DisplacementBranch()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Boundary logits [B, S / 4, S / 4], and displacements [B, 2, S / 4, S / 4] or None, of float [B, 3, S, S], S a multiple of 32."""
        stages = self.trunk(images)
        displacement = self.branches["displacement"](stages) if "displacement" in self.branches else None
        return self.branches["boundary"](stages), displacement

    def parameter_groups(self, learning_rate: float) -> Iterator[dict[str, object]]:
        """For the optimiser: the displacement branch learns ten times as fast."""
        for name, branch in self.branches.items():
            yield {"params": list(branch.parameters()), "lr": learning_rate * (10 if name == "displacement" else 1)}


def polynomial_decay(update: int, num_updates: int, power: float) -> float:
    """The factor (1 - update / num_updates)^power of the learning rate."""
    return float((1 - update / num_updates) ** power)


def boundary_maps(model: IRNet, images: torch.Tensor, flip: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Boundary maps for propagation.

    Args:
        model: in eval mode.
        images: float [B, 3, S, S].
        flip: average the logits with those of the mirrored image.

    Returns:
        Boundary map float [B, S / 4, S / 4] in [0, 1], and the displacement field [B, 2, S / 4, S / 4] in cells, or None.
    """
    with torch.no_grad():
        logits, displacement = model(images)
        if flip:
            mirrored, _ = model(images.flip(-1))
            logits = (logits + mirrored.flip(-1)) / 2
    return logits.sigmoid(), displacement


def on_grid(maps: torch.Tensor, grid: int) -> torch.Tensor:
    """Bilinear (align_corners=False) from [B, K, h, w] to [B, K, grid, grid]."""
    return F.interpolate(maps, size=(grid, grid), mode="bilinear", align_corners=False)
