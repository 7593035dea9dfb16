"""One training sample of IRNet: the image rescaled, mirrored and cropped, with IR labels of the same cells.

The crop's corner lies on a cell's corner, so labels are made on the rescaled grid itself and cut, never interpolated.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from chexseg_ray.data.images import ContentBox
from chexseg_ray.pseudo.ir_labels import IGNORE, ir_labels
from chexseg_ray.pseudo.irnet import STRIDE


@dataclass(frozen=True)
class Crop:
    """The image is resized to `cells` x `cells` cells, mirrored or not, and moved by (`top`, `left`) cells into the window."""

    cells: int
    top: int
    left: int
    mirror: bool

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: int, low: float, high: float, flip: bool) -> "Crop":
        """A scale in [low, high]; a larger image is cut at random, a smaller one placed at random; mirrored half of the time."""
        cells = max(1, round(grid * rng.uniform(low, high)))
        low_corner, high_corner = min(grid - cells, 0), max(grid - cells, 0)
        top, left = rng.integers(low_corner, high_corner + 1, size=2)
        return cls(cells, int(top), int(left), bool(flip and rng.random() < 0.5))

    def pixels(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """uint8 [S, S] to [S, S]; black outside of the image."""
        size = self.cells * STRIDE
        resized = image if size == len(image) else np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        return self._window(resized, len(image), STRIDE, 0)

    def labels(
        self, cams: npt.NDArray[np.floating], gate: npt.NDArray[np.bool_], box: ContentBox, size: int, foreground: float, background: float
    ) -> npt.NDArray[np.uint8]:
        """IR labels uint8 [K, G, G] of the same window, of CAMs [K, h, w] of an image whose content box in pixels is `box`."""
        whole = ir_labels(cams, gate, box.on_grid(size, self.cells), self.cells, foreground, background)
        return np.stack([self._window(labels, size // STRIDE, 1, IGNORE) for labels in whole])

    def _window(self, raster: npt.NDArray[np.uint8], side: int, unit: int, padding: int) -> npt.NDArray[np.uint8]:
        out = np.full((side, side), padding, dtype=np.uint8)
        mirrored = raster[:, ::-1] if self.mirror else raster
        top, left = self.top * unit, self.left * unit
        piece = mirrored[max(0, -top) : side - top, max(0, -left) : side - left]
        out[max(0, top) : max(0, top) + piece.shape[0], max(0, left) : max(0, left) + piece.shape[1]] = piece
        return out
