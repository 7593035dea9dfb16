"""Augmentation of IRNet's training images: rescaled, mirrored and cropped, with IR labels of the same cells.

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
    """How one image is cut: resized, mirrored or not, then moved into a window of the image's original size.

    Args:
        cells: the side that the image is resized to, in cells of STRIDE pixels.
        top: rows of cells that the image is moved down by; negative when its upper part is cut off.
        left: columns of cells that the image is moved right by; negative when its left part is cut off.
        mirror: whether left and right are exchanged.
    """

    cells: int
    top: int
    left: int
    mirror: bool

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: int, low: float, high: float, flip: bool) -> "Crop":
        """Draw a crop: an image larger than the window is cut at random, a smaller one is placed at random.

        Args:
            rng: the generator of all draws.
            grid: G, cells of a side of the image and of the window.
            low: smallest scale.
            high: largest scale.
            flip: mirror half of the images; without it, none.
        """
        cells = max(1, round(grid * rng.uniform(low, high)))
        low_corner, high_corner = min(grid - cells, 0), max(grid - cells, 0)
        top, left = rng.integers(low_corner, high_corner + 1, size=2)
        return cls(cells, int(top), int(left), bool(flip and rng.random() < 0.5))

    def pixels(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Cut an image uint8 [S, S]: uint8 [S, S], black outside of the image."""
        size = self.cells * STRIDE
        resized = image
        if size != len(image):
            resized = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        return self._window(resized, len(image), STRIDE, 0)

    def labels(
        self,
        cams: npt.NDArray[np.floating],
        gate: npt.NDArray[np.bool_],
        box: ContentBox,
        size: int,
        foreground: float,
        background: float,
    ) -> npt.NDArray[np.uint8]:
        """Make the IR labels of the window that `pixels` cuts.

        Args:
            cams: [K, h, w] >= 0 of the letterboxed image.
            gate: bool [K], which pathologies the image may show.
            box: the image's content, in pixels.
            size: S, pixels of a side.
            foreground: share of a map's maximum above which a cell is foreground.
            background: share of a map's maximum up to which a cell is background.

        Returns:
            uint8 [K, G, G] of 0, 1 and 255, G = S / STRIDE; 255 outside of the image.
        """
        whole = ir_labels(cams, gate, box.on_grid(size, self.cells), self.cells, foreground, background)
        return np.stack([self._window(labels, size // STRIDE, 1, IGNORE) for labels in whole])

    def _window(self, raster: npt.NDArray[np.uint8], side: int, unit: int, padding: int) -> npt.NDArray[np.uint8]:
        """Mirror a resized raster and move it into the window.

        Args:
            raster: uint8 [n, n], pixels or labels of the resized image.
            side: the window's side, in the raster's units.
            unit: the raster's units in one cell: STRIDE for pixels, 1 for labels.
            padding: the value outside of the image.

        Returns:
            uint8 [side, side].
        """
        out = np.full((side, side), padding, dtype=np.uint8)
        mirrored = raster[:, ::-1] if self.mirror else raster
        top, left = self.top * unit, self.left * unit
        piece = mirrored[max(0, -top) : side - top, max(0, -left) : side - left]
        out[max(0, top) : max(0, top) + piece.shape[0], max(0, left) : max(0, left) + piece.shape[1]] = piece
        return out
