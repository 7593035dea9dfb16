"""From CAMs and IRNet's outputs to maps ready for thresholds: close the padding, split instances, walk, rescale."""

from collections.abc import Sequence

import numpy as np
import torch

from chexseg_ray.data.images import ContentBox
from chexseg_ray.pseudo.instances import instance_cams
from chexseg_ray.pseudo.irnet import on_grid
from chexseg_ray.pseudo.random_walk import WalkSettings, propagate

SPAN = 1e-3  # share of a map's maximum; differences smaller than this are close to the walk's rounding


def propagate_cams(
    cams: torch.Tensor,
    boundary: torch.Tensor,
    displacement: torch.Tensor | None,
    boxes: Sequence[ContentBox],
    settings: WalkSettings,
    foreground: float,
) -> torch.Tensor:
    """Propagate the CAMs of a batch within the boundaries (paper appendix A.2).

    Args:
        cams: float [B, K, h, w] >= 0, at any resolution.
        boundary: float [B, G, G] in [0, 1].
        displacement: float [B, 2, G, G] in cells for instance-wise CAMs, each of which is propagated and scaled to a
            maximum of 1 by itself before they are merged by maximum; None to propagate each pathology's map whole.
        boxes: each image's content in cells; nothing enters or leaves the padding.
        settings: the settings of the random walk.
        foreground: the share of a map's maximum above which a cell is confident foreground; it forms the instances.

    Returns:
        float [B, K, G, G]: each map's content stretched to [0, 1]. A map that is flat (SPAN) after the walk carries no
        information and is 0 throughout. The padding repeats the nearest content, so that enlarging a map does not
        darken its rim.
    """
    grid = boundary.shape[-1]
    inside = torch.zeros_like(boundary, dtype=torch.bool)
    for i, box in enumerate(boxes):
        inside[i, box.rows, box.columns] = True
    closed = torch.where(inside, boundary, 1)
    start = on_grid(cams, grid) * inside.unsqueeze(1)
    if displacement is None:
        walked = propagate(start, closed, settings)
    else:
        images = zip(start, closed, displacement, strict=True)
        walked = torch.stack([_instance_wise(*image, settings, foreground) for image in images])
    return torch.stack([_stretched(maps, box) for maps, box in zip(walked, boxes, strict=True)])


def _scaled(maps: torch.Tensor) -> torch.Tensor:
    """Divide each map of [..., h, w] by its maximum; a map of zeros stays unchanged."""
    peak = maps.amax(dim=(-2, -1), keepdim=True)
    return torch.where(peak > 0, maps / torch.where(peak > 0, peak, 1), 0)


def _instance_wise(
    cams: torch.Tensor, boundary: torch.Tensor, displacement: torch.Tensor, settings: WalkSettings, foreground: float
) -> torch.Tensor:
    """Propagate the CAMs of one image by instance.

    Each instance is scaled to a maximum of 1. What belongs to no instance keeps its size relative to the whole map's
    maximum.

    Args:
        cams: float [K, G, G] >= 0, 0 in the padding.
        boundary: float [G, G] in [0, 1], 1 in the padding.
        displacement: float [2, G, G] in cells.
        settings: the settings of the random walk.
        foreground: the share of a map's maximum above which a cell is confident foreground.

    Returns:
        float [K, G, G] >= 0, the maximum over each pathology's instances and what is left.
    """
    field = displacement.cpu().numpy()
    parts = [instance_cams(cam.cpu().numpy(), field, foreground) for cam in cams]
    stacked = torch.from_numpy(np.concatenate(parts)).to(cams)
    walked = propagate(stacked.unsqueeze(0), boundary.unsqueeze(0), settings)[0]
    merged = []
    for maps in torch.split(walked, [len(part) for part in parts]):
        rest = maps[-1] / maps.sum(dim=0).amax().clamp(min=torch.finfo(maps.dtype).tiny)
        merged.append(torch.cat([_scaled(maps[:-1]), rest.unsqueeze(0)]).amax(dim=0))
    return torch.stack(merged)


def _stretched(maps: torch.Tensor, box: ContentBox) -> torch.Tensor:
    """Stretch the content of each map [K, G, G] to [0, 1], and set every cell of the padding to the nearest content."""
    cells = torch.arange(maps.shape[-1], device=maps.device)
    rows = cells.clamp(box.top, box.top + box.height - 1)
    columns = cells.clamp(box.left, box.left + box.width - 1)
    filled = maps[:, rows][:, :, columns]
    low, high = filled.amin(dim=(1, 2), keepdim=True), filled.amax(dim=(1, 2), keepdim=True)
    varied = high - low > SPAN * high
    return torch.where(varied, (filled - low) / torch.where(varied, high - low, 1), 0)
