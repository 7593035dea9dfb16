"""A trained network and its thresholds: from an X-ray of any size to probabilities and masks at its own resolution."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from chexseg_ray.data.images import content_box, letterbox, resized
from chexseg_ray.segmentation.training import predict

BATCH = 8  # images per forward pass; the last bits of a score depend on it


@dataclass(frozen=True)
class Segmented:
    """What the network finds in one X-ray.

    Args:
        scores: float32 [K, h, w] in [0, 1] of the X-ray's content at the network's resolution, without the padding.
        thresholds: float32 [K]; a pixel belongs to the mask if its score is greater.
        model_masks: bool [K, S, S] at the network's resolution.
        height: of the X-ray, in pixels.
        width: of the X-ray, in pixels.
    """

    scores: npt.NDArray[np.float32]
    thresholds: npt.NDArray[np.float32]
    model_masks: npt.NDArray[np.bool_]
    height: int
    width: int

    @property
    def probability(self) -> npt.NDArray[np.float32]:
        """float32 [K] in [0, 1], each pathology's highest score in the X-ray."""
        highest: npt.NDArray[np.float32] = self.scores.max(axis=(1, 2))
        return highest

    def mask(self, k: int) -> npt.NDArray[np.bool_] | bool:
        """Make the mask of one pathology at the X-ray's resolution.

        Args:
            k: the pathology's number.

        Returns:
            bool [height, width]; or False where no pixel belongs to it, and True where all do. That is known without
            the mask: a resized score is a weighted mean, so it is never above the highest score, nor below the lowest.
        """
        scores, threshold = self.scores[k], self.thresholds[k]
        if scores.max() <= threshold:
            return False
        if scores.min() > threshold:
            return True
        mask: npt.NDArray[np.bool_] = resized(scores, self.height, self.width) > threshold
        return mask

    @cached_property
    def masks(self) -> npt.NDArray[np.bool_]:
        """bool [K, height, width], the masks at the X-ray's resolution."""
        masks = np.empty((len(self.scores), self.height, self.width), dtype=bool)
        for k in range(len(masks)):
            masks[k] = self.mask(k)
        return masks


@dataclass(frozen=True)
class Segmenter:
    """A trained network with all that it needs to segment X-rays.

    Args:
        model: in eval mode, on `device`.
        pathologies: K names.
        thresholds: float32 [K]; a pixel belongs to the mask if its score is greater.
        normalisation: a key of data.normalisation.STATISTICS.
        size: S, side of the letterboxed input in pixels.
        device: where the model runs.
    """

    model: nn.Module
    pathologies: tuple[str, ...]
    thresholds: npt.NDArray[np.float32]
    normalisation: str
    size: int
    device: torch.device

    def images(self, images: Sequence[npt.NDArray[np.uint8]]) -> Iterator[Segmented]:
        """Segment `images`, X-rays uint8 [height, width] of any sizes, in their order."""
        pixels = np.stack([letterbox(image, self.size) for image in images])
        return self.letterboxed(pixels, [image.shape for image in images])

    def letterboxed(self, pixels: npt.NDArray[np.uint8], sizes: Sequence[tuple[int, ...]]) -> Iterator[Segmented]:
        """Segment letterboxed X-rays, in their order. Each is yielded before the next, as masks at full size are large.

        Args:
            pixels: uint8 [N, S, S].
            sizes: (height, width) of the N X-rays before letterboxing.
        """
        for start in range(0, len(pixels), BATCH):
            batch_scores = predict(self.model, pixels[start : start + BATCH], self.normalisation, self.device)
            for scores, (height, width) in zip(batch_scores, sizes[start : start + BATCH], strict=True):
                yield self._apply_thresholds(scores, height, width)

    def _apply_thresholds(self, scores: npt.NDArray[np.float32], height: int, width: int) -> Segmented:
        """Make masks of one X-ray's scores, float32 [K, S, S]; its padding belongs to no mask."""
        box = content_box(height, width, self.size)
        content = scores[:, box.rows, box.columns]
        inside = np.zeros(scores.shape, dtype=bool)
        inside[:, box.rows, box.columns] = content > self.thresholds[:, None, None]
        return Segmented(content, self.thresholds, inside, height, width)
