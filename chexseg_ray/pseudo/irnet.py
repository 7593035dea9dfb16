"""IRNet (Ahn, Cho and Kwak 2019; paper appendix A.2): a frozen ResNet50, a boundary branch, a displacement branch.

The displacement branch is optional. The trunk's strides are 2, 2, 2, 1, so its five stages lie at 1/4, 1/4, 1/8, 1/16
and 1/16 of the image's side; both branches end at 1/4. The trunk gets no gradient and its BatchNorm stays frozen, so
the branches do not affect each other.
"""

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from chexseg_ray.data.normalisation import network_input
from chexseg_ray.pseudo.affinity import irnet_losses, total_loss
from chexseg_ray.pseudo.pairs import PairLabels
from chexseg_ray.updates.step import Sum

STRIDE = 4  # pixels of the image per cell of the outputs, in height and width
_CHANNELS = (64, 256, 512, 1024, 2048)  # of the trunk's five stages
_ZOOM = (1, 1, 2, 4, 4)  # from each stage's resolution to 1/4


class Trunk(nn.Module):
    """torchvision's ResNet50 without its head; the last stage keeps its resolution."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50

        network = resnet50(weights=None)
        network.layer4[0].conv2.stride = network.layer4[0].downsample[0].stride = (1, 1)
        self.layers = nn.ModuleDict(
            {name: layer for name, layer in network.named_children() if name not in ("avgpool", "fc")}
        )
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> "Trunk":
        """Stay in eval mode whatever `mode` is, because the BatchNorm statistics are frozen; returns the trunk."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The five stages' outputs, float [B, C, h, h] with C from 64 to 2048 and h from S / 4 to S / 16.

        Args:
            images: float [B, 3, S, S], normalised.
        """
        x, stages = images, []
        with torch.no_grad():
            for name, layer in self.layers.items():
                x = layer(x)
                if name == "maxpool" or name.startswith("layer"):
                    stages.append(x)
        return stages


def _branch(channels: int, width: int, groups: int, zoom: int) -> nn.Sequential:
    """A 1 x 1 convolution from `channels` to `width`, GroupNorm with `groups`, enlargement by `zoom`, and ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(groups, width)]
    if zoom > 1:
        layers.append(nn.Upsample(scale_factor=zoom, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers, nn.ReLU())


class BoundaryBranch(nn.Module):
    """One logit per cell: high on the border between what is and what is not of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_branch(c, 32, 4, z) for c, z in zip(_CHANNELS, _ZOOM, strict=True))
        self.last = nn.Conv2d(5 * 32, 1, 1)

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        """Compute boundary logits.

        Args:
            stages: the outputs of the trunk's five stages, as Trunk.forward returns them.

        Returns:
            float [B, h, w], h = w = S / 4.
        """
        joined = torch.cat([branch(x) for branch, x in zip(self.stages, stages, strict=True)], dim=1)
        return cast(torch.Tensor, self.last(joined)).squeeze(1)


class DisplacementBranch(nn.Module):
    """For every cell the vector (dy, dx), in cells, to the centroid of the instance that the cell is a part of.

    The losses determine the vectors only up to a constant. The buffer `mean`, float [2], is this constant; it is
    subtracted in eval mode.
    """

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        widths, groups, zooms = (64, 128, 256, 256, 256), (8, 16, 16, 16, 16), (1, 1, 1, 2, 2)
        self.stages = nn.ModuleList(_branch(*sizes) for sizes in zip(_CHANNELS, widths, groups, zooms, strict=True))
        self.coarse = _branch(3 * 256, 256, 16, 2)
        self.fine = _branch(64 + 128 + 256, 256, 16, 1)
        self.last = nn.Conv2d(256, 2, 1, bias=False)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        """Compute the vectors to the centroids, in eval mode minus `mean`.

        Args:
            stages: the outputs of the trunk's five stages, as Trunk.forward returns them.

        Returns:
            float [B, 2, h, w], (dy, dx) in cells, h = w = S / 4.
        """
        first, second, *rest = [branch(x) for branch, x in zip(self.stages, stages, strict=True)]
        vectors = self.last(self.fine(torch.cat([first, second, self.coarse(torch.cat(rest, dim=1))], dim=1)))
        return cast(torch.Tensor, vectors if self.training else vectors - self.mean.view(1, 2, 1, 1))


class IRNet(nn.Module):
    """The trunk and its branches.

    Args:
        displacement: whether there is a displacement branch beside the boundary branch.
    """

    def __init__(self, displacement: bool) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.branches = nn.ModuleDict({"boundary": BoundaryBranch()})
        if displacement:
            self.branches["displacement"] = DisplacementBranch()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run both branches.

        Args:
            images: float [B, 3, S, S], normalised; S is a multiple of 32.

        Returns:
            Boundary logits float [B, S / 4, S / 4], and displacements float [B, 2, S / 4, S / 4] in cells, or None
            without the displacement branch.
        """
        stages = self.trunk(images)
        displacement = self.branches["displacement"](stages) if "displacement" in self.branches else None
        return self.branches["boundary"](stages), displacement

    def parameter_groups(self, learning_rate: float) -> Iterator[dict[str, object]]:
        """Yield the optimiser's parameter groups, one per branch; the displacement branch learns ten times as fast.

        Args:
            learning_rate: of the boundary branch.
        """
        for name, branch in self.branches.items():
            yield {"params": list(branch.parameters()), "lr": learning_rate * (10 if name == "displacement" else 1)}


def irnet_update(
    model: IRNet,
    optimiser: torch.optim.Optimizer,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    radius: int,
    loss_weights: str,
    normalisation: str,
    sum_: Sum | None = None,
) -> torch.Tensor:
    """Take one training step on IRNet's losses (paper eq. 7).

    Args:
        model: the network, in train mode.
        optimiser: the optimiser of its branches.
        pixels: uint8 [B, S, S].
        labels: IR labels uint8 [B, K, S / 4, S / 4].
        radius: in cells; two cells closer than this are a pair.
        loss_weights: sum | halves, the weights of affinity.total_loss.
        normalisation: a name of data.normalisation.STATISTICS.
        sum_: adds tensors up over the processes that share the batch; pixels and labels are then this process's share.

    Returns:
        The whole batch's three losses on the model's device: boundary, foreground and background displacement.
    """
    optimiser.zero_grad(set_to_none=True)
    dtype = next(model.parameters()).dtype
    logits, displacement = model(network_input(pixels, normalisation).to(dtype))
    pairs = PairLabels(labels, radius)
    counts = pairs.counts()
    if sum_ is not None:
        sum_([counts])
    losses = irnet_losses(logits.sigmoid(), displacement, pairs, counts)
    total_loss(losses, loss_weights).backward()  # type: ignore[no-untyped-call]
    if sum_ is not None:
        sum_(p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None)
    optimiser.step()
    values = torch.stack([losses.boundary, losses.foreground, losses.background]).detach()
    if sum_ is not None:
        sum_([values])
    return values


def polynomial_decay(update: int, num_updates: int, power: float) -> float:
    """Return the learning rate's factor (1 - update / num_updates)^power, in [0, 1].

    Args:
        update: number of updates done, 0 to num_updates.
        num_updates: length of the training.
        power: of the decay, > 0.
    """
    return float((1 - update / num_updates) ** power)


def boundary_maps(model: IRNet, images: torch.Tensor, flip: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute the boundary maps, and the displacement fields if there are any, for propagation.

    Args:
        model: the network, in eval mode.
        images: float [B, 3, S, S], normalised.
        flip: average the boundary logits with those of the mirrored image.

    Returns:
        Boundary maps float [B, S / 4, S / 4] in [0, 1], and displacement fields float [B, 2, S / 4, S / 4] in cells, or
        None without the displacement branch.
    """
    with torch.no_grad():
        logits, displacement = model(images)
        if flip:
            mirrored, _ = model(images.flip(-1))
            logits = (logits + mirrored.flip(-1)) / 2
    return logits.sigmoid(), displacement


def on_grid(maps: torch.Tensor, grid: int) -> torch.Tensor:
    """Resize `maps`, float [B, K, h, w], to [B, K, `grid`, `grid`], bilinearly (align_corners=False)."""
    return F.interpolate(maps, size=(grid, grid), mode="bilinear", align_corners=False)
