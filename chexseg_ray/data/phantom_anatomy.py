"""Draw one phantom X-ray and its masks: soft-edged anatomy, and the ten pathologies on top.

Lengths are in units of the image's height; x goes to the right and is 0 in the middle of the patient, y goes down. A
signed distance is negative inside a shape.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Field = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Anatomy:
    """One patient's geometry.

    Args:
        lung_x: distance of a lung's centre from the middle.
        lung_width: half width of a lung.
        lung_height: half height of a lung.
        lung_top: y of a lung's centre.
        dome: y of the diaphragm at its highest.
        mediastinum: half width of the mediastinum.
        heart: x, y, radius in x and radius in y.
        spine_x: x of the spine.
    """

    lung_x: float
    lung_width: float
    lung_height: float
    lung_top: float
    dome: float
    mediastinum: float
    heart: tuple[float, float, float, float]
    spine_x: float

    @classmethod
    def draw(cls, rng: np.random.Generator, lateral: bool) -> "Anatomy":
        """Draw a patient's geometry.

        Args:
            rng: the patient's generator.
            lateral: whether the view is lateral: the lungs lie behind each other, and the spine is at the back.
        """
        jitter = rng.normal(size=8) * 0.5
        if lateral:
            return cls(
                lung_x=0.06,
                lung_width=0.20 + 0.01 * jitter[2],
                lung_height=0.32,
                lung_top=0.44,
                dome=0.74,
                mediastinum=0.07,
                heart=(-0.12 + 0.01 * jitter[0], 0.60 + 0.01 * jitter[1], 0.13, 0.13),
                spine_x=0.27,
            )
        heart = (
            0.055 + 0.01 * jitter[0],
            0.60 + 0.012 * jitter[1],
            0.125 + 0.008 * jitter[2],
            0.105 + 0.008 * jitter[3],
        )
        return cls(
            lung_x=0.185 + 0.008 * jitter[4],
            lung_width=0.125 + 0.008 * jitter[5],
            lung_height=0.31 + 0.015 * jitter[6],
            lung_top=0.44,
            dome=0.71 + 0.012 * jitter[7],
            mediastinum=0.065 + 0.004 * jitter[0],
            heart=heart,
            spine_x=0.0,
        )


@dataclass
class _Canvas:
    """An image that is being drawn, and what drawing needs.

    Args:
        x: float32 [height, width], x of each pixel.
        y: float32 [height, width], y of each pixel.
        image: float32 [height, width], brightness, about 0 (black) to 1 (white).
        soft: width of soft edges.
        rng: generator of everything random in the image.
    """

    x: Field
    y: Field
    image: Field
    soft: float
    rng: np.random.Generator

    def smooth_noise(self, cell: float) -> Field:
        """Draw smooth noise of variance 1 (about) that varies over the length `cell`."""
        height, width = self.image.shape
        grid = (max(2, round(1 / cell)), max(2, round(width / height / cell)))
        coarse = self.rng.normal(size=grid).astype(np.float32)
        resized = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(resized, dtype=np.float32)

    def inside(self, distance: Field) -> Field:
        """Return a soft step of the signed `distance` to a shape: 1 inside, where it is negative, and 0 outside."""
        return np.asarray(1 / (1 + np.exp(np.clip(distance / self.soft, -30, 30))), dtype=np.float32)

    def ellipse(self, x: float, y: float, rx: float, ry: float, angle: float = 0.0, power: float = 2.0) -> Field:
        """Return the signed distance (about) to a superellipse.

        Args:
            x: of the centre.
            y: of the centre.
            rx: radius along the first axis.
            ry: radius along the second axis.
            angle: from the x axis to the first axis, in radians.
            power: 2 for an ellipse, more for a squarer shape.
        """
        dx, dy = self.x - x, self.y - y
        cos, sin = np.cos(angle), np.sin(angle)
        u, v = np.abs(cos * dx + sin * dy) / rx, np.abs(cos * dy - sin * dx) / ry
        return np.asarray(((u**power + v**power) ** (1 / power) - 1) * min(rx, ry), dtype=np.float32)

    def blend(self, weight: Field, value: float) -> None:
        """Move the image's brightness towards `value`, in each pixel by its `weight` in [0, 1]."""
        self.image += weight * (value - self.image)


def _lungs(canvas: _Canvas, anatomy: Anatomy, lateral: bool) -> list[Field]:
    """Return the signed distances of the lung fields (left of the image first), cut by the diaphragm's domes."""
    fields = []
    for side in (-1, 1):
        x = anatomy.lung_x * (0.3 if lateral else 1.0) * side
        width = anatomy.lung_width * (1.5 if lateral else 1.0)
        lung = canvas.ellipse(x, anatomy.lung_top, width, anatomy.lung_height, angle=0.10 * side, power=2.4)
        base = anatomy.dome + (0.015 if side > 0 else 0.0) + 2.2 * (canvas.x - x) ** 2
        fields.append(np.maximum(lung, canvas.y - base).astype(np.float32))
    return fields


def _background(canvas: _Canvas, anatomy: Anatomy, lungs: list[Field], heart: Field, mediastinum: Field) -> None:
    """Draw the body: soft tissue, abdomen, lungs, spine, mediastinum, heart and ribs."""
    canvas.image[:] = 0.03
    body = canvas.inside(canvas.ellipse(0.0, 0.58, 0.43, 0.60, power=3.0))
    canvas.blend(body, 0.60)
    abdomen = np.maximum(anatomy.dome - canvas.y, canvas.ellipse(0.0, 0.9, 0.40, 0.35))
    canvas.blend(canvas.inside(abdomen), 0.74)
    for lung in lungs:
        canvas.blend(canvas.inside(lung), 0.27)
    spine = canvas.inside((np.abs(canvas.x - anatomy.spine_x) - 0.028).astype(np.float32))
    canvas.image += 0.07 * spine * (1 + 0.5 * np.sin(canvas.y * 90)) * body
    canvas.blend(canvas.inside(mediastinum), 0.68)
    canvas.blend(canvas.inside(heart), 0.66)
    for rib in range(9):
        arc = canvas.y - (0.14 + 0.068 * rib + 0.55 * canvas.x**2)
        canvas.image += 0.055 * np.exp(-((arc / 0.011) ** 2)) * body


def _patch(canvas: _Canvas, lung: Field, radius: float, low: float, high: float) -> Field:
    """Return the signed distance of an irregular patch centred in a lung, at a y between `low` and `high`."""
    is_centre = (lung < -0.02) & (canvas.y > low) & (canvas.y < high)
    centres = np.argwhere(is_centre)
    if not len(centres):
        centres = np.argwhere(lung == lung.min())
    row, column = centres[canvas.rng.integers(len(centres))]
    x, y = float(canvas.x[row, column]), float(canvas.y[row, column])
    blob = canvas.ellipse(x, y, radius, radius * canvas.rng.uniform(0.7, 1.2))
    return np.asarray(np.maximum(blob + 0.35 * radius * canvas.smooth_noise(radius), lung), dtype=np.float32)


class PhantomPainter:
    """Draws the anatomy and the findings of one image, which later findings may cover in part.

    Args:
        anatomy: the patient's geometry.
        findings: names of the pathologies to draw.
        lateral: whether the view is lateral.
        size: height and width of the image, in pixels.
        rng: the image's generator.
    """

    def __init__(
        self, anatomy: Anatomy, findings: frozenset[str], lateral: bool, size: tuple[int, int], rng: np.random.Generator
    ) -> None:
        height, width = size
        row, column = np.mgrid[0:height, 0:width].astype(np.float32)
        shift = rng.normal(scale=0.012, size=2)
        zoom = rng.normal(1.0, 0.03)
        tilt = rng.normal(scale=0.03)
        u, v = (column + 0.5 - width / 2) / height, (row + 0.5) / height - 0.5
        x = (np.cos(tilt) * u + np.sin(tilt) * v) / zoom + shift[0]
        y = (np.cos(tilt) * v - np.sin(tilt) * u) / zoom + shift[1] + 0.5
        zeros = np.zeros(size, dtype=np.float32)
        self.canvas = _Canvas(x.astype(np.float32), y.astype(np.float32), zeros, max(0.004, 1.0 / height), rng)
        self.anatomy, self.findings, self.lateral = anatomy, findings, lateral
        self.lungs = _lungs(self.canvas, anatomy, lateral)
        self.masks: dict[str, Mask] = {}

    def paint(self) -> tuple[npt.NDArray[np.uint8], dict[str, Mask]]:
        """Draw the image.

        Returns:
            The image uint8 [height, width], and the mask bool [height, width] of each finding, by name.
        """
        self._silhouette()
        canvas = self.canvas
        lung_weight = np.maximum(*[canvas.inside(lung) for lung in self.lungs])
        canvas.image += 0.03 * canvas.smooth_noise(0.02) * lung_weight + 0.025 * canvas.smooth_noise(0.12)
        for name, paint in (
            ("Edema", self._edema),
            ("Consolidation", self._consolidation),
            ("Atelectasis", self._atelectasis),
            ("Airspace Opacity", self._airspace_opacity),
            ("Lung Lesion", self._lesion),
            ("Pneumothorax", self._pneumothorax),
            ("Pleural Effusion", self._effusion),
            ("Support Devices", self._devices),
        ):
            if name in self.findings:
                self.masks[name] = paint()
        contrast = canvas.rng.normal(1.0, 0.06)
        brightness = canvas.rng.normal(0.0, 0.02)
        grey = canvas.image * contrast + brightness + canvas.rng.normal(scale=0.015, size=canvas.image.shape)
        return np.clip(np.rint(grey * 255), 0, 255).astype(np.uint8), self.masks

    def _silhouette(self) -> None:
        """Draw the body with its heart and mediastinum, and make the masks of these two."""
        anatomy, canvas = self.anatomy, self.canvas
        hx, hy, rx, ry = anatomy.heart
        has_large_heart = "Cardiomegaly" in self.findings
        has_large_mediastinum = "Enlarged Cardiomediastinum" in self.findings
        if has_large_heart:
            grow = canvas.rng.uniform(1.35, 1.6)
            hx, rx, ry = hx + 0.3 * rx * (grow - 1), rx * grow, ry * (1 + 0.6 * (grow - 1))
        # A large heart is enough for the finding, so that only some of these patients have a wide mediastinum too.
        is_widened = has_large_mediastinum and (not has_large_heart or canvas.rng.random() < 0.4)
        half_width = anatomy.mediastinum * (canvas.rng.uniform(1.6, 2.0) if is_widened else 1.0)
        heart = canvas.ellipse(hx, hy, rx, ry, angle=0.35)
        mediastinum = canvas.ellipse(0.0, 0.38, half_width, 0.27, power=3.0)
        _background(canvas, anatomy, self.lungs, heart, mediastinum)
        # Findings are drawn in the visible part of the lungs only.
        self.lungs = [np.maximum(lung, np.maximum(-heart, -mediastinum)) for lung in self.lungs]
        if has_large_heart:
            self.masks["Cardiomegaly"] = heart < 0
        if has_large_mediastinum:
            self.masks["Enlarged Cardiomediastinum"] = (mediastinum < 0) | (heart < 0)

    def _add(self, distance: Field, amount: float, texture: float = 0.0) -> Mask:
        """Brighten a shape by at most `amount`, with noise of the standard deviation `texture`, and return its mask."""
        canvas = self.canvas
        amount *= canvas.rng.uniform(0.5, 1.0)  # from faint to plain
        canvas.image += canvas.inside(distance) * (amount + texture * canvas.smooth_noise(0.015))
        return distance < 0

    def _random_lung(self) -> Field:
        return self.lungs[int(self.canvas.rng.integers(2))]

    def _edema(self) -> Mask:
        """Draw a wing beside each side of the heart."""
        canvas = self.canvas
        mask = np.zeros(canvas.image.shape, dtype=bool)
        for side, lung in zip((-1, 1), self.lungs, strict=True):
            wing = canvas.ellipse(0.7 * side * self.anatomy.lung_x, 0.47, 0.12, 0.19) + 0.02 * canvas.smooth_noise(0.1)
            mask |= self._add(np.maximum(wing, lung), canvas.rng.uniform(0.12, 0.18), texture=0.05)
        return mask

    def _consolidation(self) -> Mask:
        lung = self._random_lung()
        patch = _patch(self.canvas, lung, self.canvas.rng.uniform(0.07, 0.11), 0.3, 0.66)
        return self._add(patch, 0.27, texture=0.03)

    def _atelectasis(self) -> Mask:
        """Draw a thin band across the lower part of a lung."""
        canvas = self.canvas
        lung = self._random_lung()
        x = float(canvas.x[lung < 0].mean()) if (lung < 0).any() else 0.0
        y = canvas.rng.uniform(0.58, 0.66)
        rx, ry = canvas.rng.uniform(0.08, 0.11), canvas.rng.uniform(0.018, 0.03)
        band = canvas.ellipse(x, y, rx, ry, angle=canvas.rng.uniform(-0.4, 0.4))
        return self._add(np.maximum(band, lung - 0.01), 0.28)

    def _airspace_opacity(self) -> Mask:
        """Unite the masks of the opacities that are drawn already; where there are none, draw one or two patches."""
        mask = np.zeros(self.canvas.image.shape, dtype=bool)
        children = [self.masks[name] for name in ("Edema", "Consolidation", "Atelectasis") if name in self.masks]
        for child in children:
            mask |= child
        if not children:
            for _ in range(int(self.canvas.rng.integers(1, 3))):
                lung = self._random_lung()
                patch = _patch(self.canvas, lung, self.canvas.rng.uniform(0.06, 0.10), 0.2, 0.66)
                mask |= self._add(patch, 0.2, texture=0.06)
        return mask

    def _lesion(self) -> Mask:
        radius = self.canvas.rng.uniform(0.02, 0.035)
        lung = self._random_lung()
        spot = _patch(self.canvas, lung, radius, 0.2, 0.62)
        return self._add(spot, 0.30)

    def _lung_x(self, side: int) -> float:
        """Return x of a lung's centre; side 0 is left in the image, 1 right."""
        return self.anatomy.lung_x * (0.3 if self.lateral else 1.0) * (-1, 1)[side]

    def _pneumothorax(self) -> Mask:
        """Draw a lung that has collapsed, with a dark gap around it and a bright edge."""
        anatomy, canvas = self.anatomy, self.canvas
        side = int(canvas.rng.integers(2))
        lung = self.lungs[side]
        x, y = self._lung_x(side) * 0.82, anatomy.lung_top + 0.07
        collapsed = canvas.ellipse(x, y, anatomy.lung_width * 0.80, anatomy.lung_height * 0.86, power=2.4)
        gap: Field = np.maximum(np.maximum(lung, -collapsed), canvas.y - 0.62).astype(np.float32)
        canvas.blend(canvas.inside(gap), 0.14)
        canvas.image += 0.10 * np.exp(-((collapsed / 0.006) ** 2)) * canvas.inside(lung)
        return gap < 0

    def _effusion(self) -> Mask:
        """Fill the bottom of one lung or both with fluid, whose level slopes across the lung."""
        canvas = self.canvas
        mask = np.zeros(canvas.image.shape, dtype=bool)
        sides = [0, 1] if canvas.rng.random() < 0.3 else [int(canvas.rng.integers(2))]
        for side in sides:
            lateral_rise = np.clip((canvas.x - self._lung_x(side)) * (-1, 1)[side], -0.2, 0.2)
            level = self.anatomy.dome - canvas.rng.uniform(0.06, 0.16) - 0.45 * lateral_rise
            fluid = np.maximum(self.lungs[side], level - canvas.y).astype(np.float32)
            canvas.blend(canvas.inside(fluid), 0.70)
            mask |= fluid < 0
        return mask

    def _devices(self) -> Mask:
        """Draw one to three of: a central line, a tracheal tube, a pacemaker with its lead."""
        canvas = self.canvas
        mask = np.zeros(canvas.image.shape, dtype=bool)
        kinds = canvas.rng.permutation(3)[: int(canvas.rng.integers(1, 4))]
        for kind in kinds:
            t = np.linspace(0, 1, 160)
            if kind == 0:  # central line: neck to the right atrium
                px, py = -0.20 + 0.17 * t**0.6 + 0.02 * np.sin(5 * t), 0.10 + 0.42 * t**1.6
            elif kind == 1:  # tracheal tube
                px, py = 0.01 * np.sin(3 * t), 0.02 + 0.27 * t
            else:  # lead from a pacemaker's pocket to the heart
                px, py = 0.25 - 0.20 * t, 0.20 + 0.42 * t + 0.06 * np.sin(3.1 * t)
                box = canvas.ellipse(0.25, 0.19, 0.045, 0.035, power=4.0)
                canvas.blend(canvas.inside(box), 0.97)
                mask |= box < 0
            px = px + canvas.rng.normal(scale=0.012)
            line = self._distance_to_curve(px, py) - canvas.rng.uniform(0.005, 0.008)
            canvas.blend(0.85 * canvas.inside(line.astype(np.float32)), 0.97)
            mask |= line < 0.003
        return mask

    def _distance_to_curve(self, px: npt.NDArray[np.float64], py: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the distance, float64 [height, width], of each pixel to the curve through the points (px, py)."""
        from scipy.ndimage import distance_transform_edt

        canvas = self.canvas
        height, width = canvas.image.shape
        # The tilt is small: one column's y and one row's x stand for all.
        y_of_rows = canvas.y[:, canvas.y.shape[1] // 2]
        x_of_columns = canvas.x[canvas.x.shape[0] // 2]
        off_curve = np.ones(canvas.image.shape, dtype=bool)
        t = np.linspace(0, 1, 4 * height)
        x, y = np.interp(t, np.linspace(0, 1, len(px)), px), np.interp(t, np.linspace(0, 1, len(py)), py)
        row = np.clip(np.searchsorted(y_of_rows, y), 0, height - 1)
        column = np.clip(np.searchsorted(x_of_columns, x), 0, width - 1)
        off_curve[row, column] = False
        distance: npt.NDArray[np.float64] = distance_transform_edt(off_curve) / height
        return distance


def second_reader(mask: Mask, rng: np.random.Generator) -> Mask:
    """Draw a second reader's version of a mask: shifted by a few per cent, larger or smaller, in one case of 12 missed.

    Args:
        mask: bool [height, width], with at least one pixel set.
        rng: the image's generator.

    Returns:
        bool [height, width].
    """
    from scipy.ndimage import binary_dilation, binary_erosion

    if rng.random() < 1 / 12:
        return np.zeros_like(mask)
    shift = np.rint(rng.normal(scale=0.012 * len(mask), size=2)).astype(int)
    moved = np.roll(mask, tuple(shift), axis=(0, 1))
    steps = int(rng.integers(-2, 4))
    if steps > 0:
        return np.asarray(binary_dilation(moved, iterations=steps), dtype=bool)
    if steps < 0:
        eroded = np.asarray(binary_erosion(moved, iterations=-steps), dtype=bool)
        if eroded.any():
            return eroded
    return moved
