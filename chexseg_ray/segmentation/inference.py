"""A trained network with what it needs to be used: from an X-ray of any size to probabilities and masks at its own resolution."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from chexseg_ray.data.images import content_box, letterbox, unletterbox
from chexseg_ray.segmentation.training import predict

BATCH = 8  # images that pass together; the last bits of a score depend on it


@dataclass(frozen=True)
class Segmented:
    """One X-ray: `probability` float32 [K], the highest score in it of each pathology; masks bool [K, height, width], and bool [K, S, S]."""

    probability: npt.NDArray[np.float32]
    masks: npt.NDArray[np.bool_]
    model_masks: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Segmenter:
    """A network in eval mode on its device; `thresholds` float32 [K] in the order of the pathologies, `size` S of its letterboxed input."""

    model: nn.Module
    pathologies: tuple[str, ...]
    thresholds: npt.NDArray[np.float32]
    normalisation: str
    size: int
    device: torch.device

    def images(self, images: Sequence[npt.NDArray[np.uint8]]) -> Iterator[Segmented]:
        """X-rays uint8 [height, width], each of its own size."""
        pixels = np.stack([letterbox(image, self.size) for image in images])
        return self.letterboxed(pixels, [image.shape for image in images])

    def letterboxed(self, pixels: npt.NDArray[np.uint8], sizes: Sequence[tuple[int, ...]]) -> Iterator[Segmented]:
        """X-rays uint8 [N, S, S] whose originals have those (height, width), one after another: masks at full size are large."""
        for start in range(0, len(pixels), BATCH):
            scores = predict(self.model, pixels[start : start + BATCH], self.normalisation, self.device)
            for own, (height, width) in zip(scores, sizes[start : start + BATCH], strict=True):
                yield self._segmented(own, height, width)

    def _segmented(self, scores: npt.NDArray[np.float32], height: int, width: int) -> Segmented:
        box = content_box(height, width, self.size)
        content = scores[:, box.rows, box.columns]
        inside = np.zeros(scores.shape, dtype=bool)
        inside[:, box.rows, box.columns] = content > self.thresholds[:, None, None]
        masks = np.empty((len(scores), height, width), dtype=bool)
        for k, cut in enumerate(self.thresholds):
            np.greater(unletterbox(scores[k : k + 1], height, width)[0], cut, out=masks[k])
        return Segmented(content.max(axis=(1, 2)), masks, inside)
