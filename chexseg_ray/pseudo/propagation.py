"""From CAMs and IRNet's outputs to maps ready for thresholds: closed padding, random walk, instances, scale."""

from collections.abc import Sequence

import numpy as np
import torch

from chexseg_ray.data.images import ContentBox
from chexseg_ray.pseudo.instances import instance_cams
from chexseg_ray.pseudo.irnet import on_grid
from chexseg_ray.pseudo.random_walk import WalkSettings, propagate

SPAN = 1e-3  # of a map's maximum: below it, what is left of the differences is near the walk's rounding


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
        displacement: float [B, 2, G, G] in cells for instance-wise CAMs, each propagated and scaled to a maximum of 1 apart, and
            merged by maximum; None to propagate each pathology's map whole.
        boxes: each image's content in cells; nothing enters or leaves the padding.
        settings: of the random walk.
        foreground: share of a map's maximum that makes a cell confident foreground, of which instances are made.

    Returns:
        float [B, K, G, G]: each map's content from 0 to 1, or the map is 0 throughout: one that is flat (SPAN) after the walk says
        nothing. The padding repeats the nearest content, so that enlarging a map does not darken its rim.
    """
    grid = boundary.shape[-1]
    inside = torch.zeros_like(boundary, dtype=torch.bool)
    for i, box in enumerate(boxes):
        inside[i, box.rows, box.columns] = True
    closed = torch.where(inside, boundary, 1)
    start = on_grid(cams, grid) * inside.unsqueeze(1)
    if displacement is None:
        out = propagate(start, closed, settings)
    else:
        out = torch.stack([_instance_wise(*each, settings, foreground) for each in zip(start, closed, displacement, strict=True)])
    return torch.stack([_stretched(maps, box) for maps, box in zip(out, boxes, strict=True)])


def _scaled(maps: torch.Tensor) -> torch.Tensor:
    """Each map of [..., h, w] divided by its maximum; a map of zeros stays."""
    peak = maps.amax(dim=(-2, -1), keepdim=True)
    return torch.where(peak > 0, maps / torch.where(peak > 0, peak, 1), 0)


def _instance_wise(cams: torch.Tensor, boundary: torch.Tensor, displacement: torch.Tensor, settings: WalkSettings, foreground: float) -> torch.Tensor:
    """One image: cams [K, G, G] to [K, G, G]. What belongs to no instance keeps its size relative to the whole map's maximum."""
    field = displacement.cpu().numpy()
    parts = [instance_cams(cam.cpu().numpy(), field, foreground) for cam in cams]
    stacked = torch.from_numpy(np.concatenate(parts)).to(cams)
    walked = propagate(stacked.unsqueeze(0), boundary.unsqueeze(0), settings)[0]
    merged = []
    for own in torch.split(walked, [len(part) for part in parts]):
        rest = own[-1] / own.sum(dim=0).amax().clamp(min=torch.finfo(own.dtype).tiny)
        merged.append(torch.cat([_scaled(own[:-1]), rest.unsqueeze(0)]).amax(dim=0))
    return torch.stack(merged)


def _stretched(maps: torch.Tensor, box: ContentBox) -> torch.Tensor:
    """[K, G, G] with the content of each map stretched to [0, 1], and every cell outside of it set to the nearest one in it."""
    cells = torch.arange(maps.shape[-1], device=maps.device)
    rows = cells.clamp(box.top, box.top + box.height - 1)
    columns = cells.clamp(box.left, box.left + box.width - 1)
    filled = maps[:, rows][:, :, columns]
    low, high = filled.amin(dim=(1, 2), keepdim=True), filled.amax(dim=(1, 2), keepdim=True)
    told = high - low > SPAN * high
    return torch.where(told, (filled - low) / torch.where(told, high - low, 1), 0)
