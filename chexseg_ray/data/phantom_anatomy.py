"""Draw one phantom X-ray and its masks: soft-edged anatomy on a unit square, and the ten pathologies on top."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

Field = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Anatomy:
    """One patient's geometry; lengths in units of the image's height, x to the right, y down, the centre at x = 0."""

    lung_x: float
    lung_width: float
    lung_height: float
    lung_top: float
    dome: float
    mediastinum: float
    heart: tuple[float, float, float, float]  # x, y, radius x, radius y
    spine_x: float

    @classmethod
    def draw(cls, rng: np.random.Generator, lateral: bool) -> "Anatomy":
        """A patient's geometry; a lateral view has both lungs behind each other and the spine at the back."""
        jitter = rng.normal(size=8) * 0.5
        if lateral:
            heart = (-0.12 + 0.01 * jitter[0], 0.60 + 0.01 * jitter[1], 0.13, 0.13)
            return cls(0.06, 0.20 + 0.01 * jitter[2], 0.32, 0.44, 0.74, 0.07, heart, 0.27)
        heart = (0.055 + 0.01 * jitter[0], 0.60 + 0.012 * jitter[1], 0.125 + 0.008 * jitter[2], 0.105 + 0.008 * jitter[3])
        return cls(
            0.185 + 0.008 * jitter[4], 0.125 + 0.008 * jitter[5], 0.31 + 0.015 * jitter[6], 0.44, 0.71 + 0.012 * jitter[7],
            0.065 + 0.004 * jitter[0], heart, 0.0,
        )  # fmt: skip


@dataclass
class _Canvas:
    x: Field
    y: Field
    image: Field
    soft: float
    rng: np.random.Generator

    def smooth_noise(self, cell: float) -> Field:
        """Noise of unit variance (about) that varies over `cell` image heights."""
        height, width = self.image.shape
        grid = (max(2, round(1 / cell)), max(2, round(width / height / cell)))
        coarse = self.rng.normal(size=grid).astype(np.float32)
        resized = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(resized, dtype=np.float32)

    def inside(self, distance: Field) -> Field:
        """A soft step: 1 where a signed distance (image heights) is negative."""
        return np.asarray(1 / (1 + np.exp(np.clip(distance / self.soft, -30, 30))), dtype=np.float32)

    def ellipse(self, x: float, y: float, rx: float, ry: float, angle: float = 0.0, power: float = 2.0) -> Field:
        """Signed distance (about) to a superellipse."""
        dx, dy = self.x - x, self.y - y
        c, s = np.cos(angle), np.sin(angle)
        u, v = np.abs(c * dx + s * dy) / rx, np.abs(c * dy - s * dx) / ry
        return np.asarray(((u**power + v**power) ** (1 / power) - 1) * min(rx, ry), dtype=np.float32)

    def blend(self, weight: Field, value: float) -> None:
        self.image += weight * (value - self.image)


def _lungs(canvas: _Canvas, a: Anatomy, lateral: bool) -> list[Field]:
    """Signed distances of the lung fields (left of the image first), cut by the diaphragm's domes."""
    fields = []
    for side in (-1, 1):
        x = a.lung_x * (0.3 if lateral else 1.0) * side
        lung = canvas.ellipse(x, a.lung_top, a.lung_width * (1.5 if lateral else 1.0), a.lung_height, angle=0.10 * side, power=2.4)
        base = a.dome + (0.015 if side > 0 else 0.0) + 2.2 * (canvas.x - x) ** 2
        fields.append(np.maximum(lung, canvas.y - base).astype(np.float32))
    return fields


def _background(canvas: _Canvas, a: Anatomy, lungs: list[Field], heart: Field, mediastinum: Field) -> None:
    canvas.image[:] = 0.03
    body = canvas.inside(canvas.ellipse(0.0, 0.58, 0.43, 0.60, power=3.0))
    canvas.blend(body, 0.60)
    canvas.blend(canvas.inside(np.maximum(a.dome - canvas.y, canvas.ellipse(0.0, 0.9, 0.40, 0.35))), 0.74)
    for lung in lungs:
        canvas.blend(canvas.inside(lung), 0.27)
    spine = canvas.inside((np.abs(canvas.x - a.spine_x) - 0.028).astype(np.float32))
    canvas.image += 0.07 * spine * (1 + 0.5 * np.sin(canvas.y * 90)) * body
    canvas.blend(canvas.inside(mediastinum), 0.68)
    canvas.blend(canvas.inside(heart), 0.66)
    for k in range(9):
        arc = canvas.y - (0.14 + 0.068 * k + 0.55 * canvas.x**2)
        canvas.image += 0.055 * np.exp(-((arc / 0.011) ** 2)) * body


def _patch(canvas: _Canvas, lung: Field, radius: float, low: float, high: float) -> Field:
    """Signed distance of an irregular patch centred in a lung, between two heights of the image."""
    ok = (lung < -0.02) & (canvas.y > low) & (canvas.y < high)
    centres = np.argwhere(ok)
    if not len(centres):
        centres = np.argwhere(lung == lung.min())
    row, column = centres[canvas.rng.integers(len(centres))]
    blob = canvas.ellipse(float(canvas.x[row, column]), float(canvas.y[row, column]), radius, radius * canvas.rng.uniform(0.7, 1.2))
    return np.asarray(np.maximum(blob + 0.35 * radius * canvas.smooth_noise(radius), lung), dtype=np.float32)


class PhantomPainter:
    """Draws anatomy and findings of one image. Findings are painted in an order that lets later ones cover earlier ones."""

    def __init__(self, anatomy: Anatomy, findings: frozenset[str], lateral: bool, size: tuple[int, int], rng: np.random.Generator) -> None:
        height, width = size
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        shift, zoom, tilt = rng.normal(scale=0.012, size=2), rng.normal(1.0, 0.03), rng.normal(scale=0.03)
        u, v = (x + 0.5 - width / 2) / height, (y + 0.5) / height - 0.5
        u, v = (np.cos(tilt) * u + np.sin(tilt) * v) / zoom + shift[0], (np.cos(tilt) * v - np.sin(tilt) * u) / zoom + shift[1] + 0.5
        zeros = np.zeros(size, dtype=np.float32)
        self.canvas = _Canvas(u.astype(np.float32), v.astype(np.float32), zeros, max(0.004, 1.0 / height), rng)
        self.anatomy, self.findings, self.lateral = anatomy, findings, lateral
        self.lungs = _lungs(self.canvas, anatomy, lateral)
        self.masks: dict[str, Mask] = {}

    def paint(self) -> tuple[npt.NDArray[np.uint8], dict[str, Mask]]:
        """The image uint8 [height, width] and the mask of each finding."""
        self._silhouette()
        c = self.canvas
        lung_weight = np.maximum(*[c.inside(lung) for lung in self.lungs])
        c.image += 0.03 * c.smooth_noise(0.02) * lung_weight + 0.025 * c.smooth_noise(0.12)
        for name, paint in (
            ("Edema", self._edema),
            ("Consolidation", self._consolidation),
            ("Atelectasis", self._atelectasis),
            ("Airspace Opacity", self._other_opacity),
            ("Lung Lesion", self._lesion),
            ("Pneumothorax", self._pneumothorax),
            ("Pleural Effusion", self._effusion),
            ("Support Devices", self._devices),
        ):
            if name in self.findings:
                self.masks[name] = paint()
        grey = c.image * c.rng.normal(1.0, 0.06) + c.rng.normal(0.0, 0.02) + c.rng.normal(scale=0.015, size=c.image.shape)
        return np.clip(np.rint(grey * 255), 0, 255).astype(np.uint8), self.masks

    def _silhouette(self) -> None:
        a, c = self.anatomy, self.canvas
        hx, hy, rx, ry = a.heart
        if "Cardiomegaly" in self.findings:
            grow = c.rng.uniform(1.35, 1.6)
            hx, rx, ry = hx + 0.3 * rx * (grow - 1), rx * grow, ry * (1 + 0.6 * (grow - 1))
        widened = "Enlarged Cardiomediastinum" in self.findings and ("Cardiomegaly" not in self.findings or c.rng.random() < 0.4)
        half = a.mediastinum * (c.rng.uniform(1.6, 2.0) if widened else 1.0)
        heart = c.ellipse(hx, hy, rx, ry, angle=0.35)
        mediastinum = c.ellipse(0.0, 0.38, half, 0.27, power=3.0)
        _background(c, a, self.lungs, heart, mediastinum)
        self.lungs = [np.maximum(lung, np.maximum(-heart, -mediastinum)) for lung in self.lungs]  # what of them can be seen
        if "Cardiomegaly" in self.findings:
            self.masks["Cardiomegaly"] = heart < 0
        if "Enlarged Cardiomediastinum" in self.findings:
            self.masks["Enlarged Cardiomediastinum"] = (mediastinum < 0) | (heart < 0)

    def _add(self, distance: Field, amount: float, texture: float = 0.0) -> Mask:
        c = self.canvas
        amount *= c.rng.uniform(0.5, 1.0)  # from faint to plain
        c.image += c.inside(distance) * (amount + texture * c.smooth_noise(0.015))
        return distance < 0

    def _lung(self) -> Field:
        return self.lungs[int(self.canvas.rng.integers(2))]

    def _edema(self) -> Mask:
        c, a = self.canvas, self.anatomy
        mask = np.zeros(c.image.shape, dtype=bool)
        for side, lung in zip((-1, 1), self.lungs, strict=True):
            wing = c.ellipse(0.7 * side * a.lung_x, 0.47, 0.12, 0.19) + 0.02 * c.smooth_noise(0.1)
            mask |= self._add(np.maximum(wing, lung), c.rng.uniform(0.12, 0.18), texture=0.05)
        return mask

    def _consolidation(self) -> Mask:
        return self._add(_patch(self.canvas, self._lung(), self.canvas.rng.uniform(0.07, 0.11), 0.3, 0.66), 0.27, texture=0.03)

    def _atelectasis(self) -> Mask:
        c = self.canvas
        lung = self._lung()
        x = float(c.x[lung < 0].mean()) if (lung < 0).any() else 0.0
        band = c.ellipse(x, c.rng.uniform(0.58, 0.66), c.rng.uniform(0.08, 0.11), c.rng.uniform(0.018, 0.03), angle=c.rng.uniform(-0.4, 0.4))
        return self._add(np.maximum(band, lung - 0.01), 0.28)

    def _other_opacity(self) -> Mask:
        mask = np.zeros(self.canvas.image.shape, dtype=bool)
        children = [self.masks[name] for name in ("Edema", "Consolidation", "Atelectasis") if name in self.masks]
        for child in children:
            mask |= child
        if not children:
            for _ in range(int(self.canvas.rng.integers(1, 3))):
                mask |= self._add(_patch(self.canvas, self._lung(), self.canvas.rng.uniform(0.06, 0.10), 0.2, 0.66), 0.2, texture=0.06)
        return mask

    def _lesion(self) -> Mask:
        radius = self.canvas.rng.uniform(0.02, 0.035)
        lung = self._lung()
        spot = _patch(self.canvas, lung, radius, 0.2, 0.62)
        return self._add(spot, 0.30)

    def _pneumothorax(self) -> Mask:
        c = self.canvas
        side = int(c.rng.integers(2))
        lung = self.lungs[side]
        x = self.anatomy.lung_x * (0.3 if self.lateral else 1.0) * (-1, 1)[side]
        collapsed = c.ellipse(x * 0.82, self.anatomy.lung_top + 0.07, self.anatomy.lung_width * 0.80, self.anatomy.lung_height * 0.86, power=2.4)
        gap: Field = np.maximum(np.maximum(lung, -collapsed), c.y - 0.62).astype(np.float32)
        c.blend(c.inside(gap), 0.14)
        c.image += 0.10 * np.exp(-((collapsed / 0.006) ** 2)) * c.inside(lung)
        return gap < 0

    def _effusion(self) -> Mask:
        c, a = self.canvas, self.anatomy
        mask = np.zeros(c.image.shape, dtype=bool)
        sides = [0, 1] if c.rng.random() < 0.3 else [int(c.rng.integers(2))]
        for side in sides:
            x = a.lung_x * (0.3 if self.lateral else 1.0) * (-1, 1)[side]
            lateral_rise = np.clip((c.x - x) * (-1, 1)[side], -0.2, 0.2)
            level = a.dome - c.rng.uniform(0.06, 0.16) - 0.45 * lateral_rise
            fluid = np.maximum(self.lungs[side], level - c.y).astype(np.float32)
            c.blend(c.inside(fluid), 0.70)
            mask |= fluid < 0
        return mask

    def _devices(self) -> Mask:
        c = self.canvas
        mask = np.zeros(c.image.shape, dtype=bool)
        kinds = c.rng.permutation(3)[: int(c.rng.integers(1, 4))]
        for kind in kinds:
            t = np.linspace(0, 1, 160)
            if kind == 0:  # central line: neck to the right atrium
                px, py = -0.20 + 0.17 * t**0.6 + 0.02 * np.sin(5 * t), 0.10 + 0.42 * t**1.6
            elif kind == 1:  # tracheal tube
                px, py = 0.01 * np.sin(3 * t), 0.02 + 0.27 * t
            else:  # lead from a pacemaker's pocket to the heart
                px, py = 0.25 - 0.20 * t, 0.20 + 0.42 * t + 0.06 * np.sin(3.1 * t)
                box = c.ellipse(0.25, 0.19, 0.045, 0.035, power=4.0)
                c.blend(c.inside(box), 0.97)
                mask |= box < 0
            px = px + c.rng.normal(scale=0.012)
            line = self._distance_to_curve(px, py) - c.rng.uniform(0.005, 0.008)
            c.blend(0.85 * c.inside(line.astype(np.float32)), 0.97)
            mask |= line < 0.003
        return mask

    def _distance_to_curve(self, px: npt.NDArray[np.float64], py: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        from scipy.ndimage import distance_transform_edt

        c = self.canvas
        height = c.image.shape[0]
        rows = c.y[:, c.y.shape[1] // 2]
        columns = c.x[c.x.shape[0] // 2]
        on = np.ones(c.image.shape, dtype=bool)
        fine = np.linspace(0, 1, 4 * height)
        xs, ys = np.interp(fine, np.linspace(0, 1, len(px)), px), np.interp(fine, np.linspace(0, 1, len(py)), py)
        row = np.clip(np.searchsorted(rows, ys), 0, height - 1)
        column = np.clip(np.searchsorted(columns, xs), 0, c.image.shape[1] - 1)
        on[row, column] = False
        distance: npt.NDArray[np.float64] = distance_transform_edt(on) / height
        return distance


def second_reader(mask: Mask, rng: np.random.Generator) -> Mask:
    """Another reader's version of a mask: moved by a few per cent, larger or smaller, and missed once in twelve times."""
    if rng.random() < 1 / 12:
        return np.zeros_like(mask)
    shift = np.rint(rng.normal(scale=0.012 * len(mask), size=2)).astype(int)
    moved = np.roll(mask, tuple(shift), axis=(0, 1))
    from scipy.ndimage import binary_dilation, binary_erosion

    steps = int(rng.integers(-2, 4))
    if steps > 0:
        return np.asarray(binary_dilation(moved, iterations=steps), dtype=bool)
    eroded = np.asarray(binary_erosion(moved, iterations=-steps), dtype=bool) if steps < 0 else moved
    return eroded if eroded.any() else moved
