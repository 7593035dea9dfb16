"""The axes of a sweep: an axis is one field of SweepPoint, with all that the program must know about it.

Config sections, the product of the grids, labels, table columns, contrasts and figures loop over AXES. A new axis needs
a field here, and one line in study/graph.py that puts its value into a step's config. Give it a default, so that old
config files and old addresses stay valid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from chexseg_ray.config.fields import Fraction, Name, Positive
from chexseg_ray.config.methods import METHODS

PAPER_NETWORK = ("deeplabv3plus", "resnet18")  # labels and sentences do not name it


@dataclass(frozen=True)
class Axis:
    """What the program must know about one axis.

    Args:
        kind: the pydantic type of one value in a config file.
        meaning: one sentence, for the config's JSON schema.
        heading: the column's heading in tables; axes with the same heading share a column, joined with `/`.
        section: the config section that lists the values: `sweep`, where each grid may list others, or `segmentation`.
        default: the value where a config file does not name the axis; `...` makes the field required.
        label: writes a value into a point's label; an empty string leaves it out there and in sentences.
        words: writes a value into a sentence or a legend.
        cell: writes a value into a table cell.
        name: the name of the field, in the config and in results.csv; taken from SweepPoint.
        without_pseudo_masks: the value of points with p = 1, which draw no pseudo mask; `...` keeps the point's value.
    """

    kind: Any
    meaning: str
    heading: str
    label: Callable[[Any], str]
    words: Callable[[Any], str]
    cell: Callable[[Any], str] = str
    name: str = ""
    section: str = "sweep"
    default: Any = ...
    without_pseudo_masks: Any = ...


def axis(**facts: Any) -> Any:
    """Declare a field of SweepPoint as an axis; `facts` are the arguments of Axis."""
    declared = Axis(**facts)
    if declared.default is ...:
        return field(metadata={"axis": declared})
    return field(default=declared.default, metadata={"axis": declared})


@dataclass(frozen=True)
class SweepPoint:
    """One training of the sweep, or, with trial -1, a setting (all trainings that differ in their trial only).

    Points with p = 1 draw no pseudo mask: their `method` is None and their `weak_n` 0.
    """

    method: str | None = axis(
        kind=Literal.__getitem__(tuple(METHODS)),
        meaning="Sources of pseudo masks.",
        heading="masks",
        label=lambda value: value or "expert",
        words=str,
        cell=lambda value: value or "expert masks only",
        without_pseudo_masks=None,
    )
    p: float = axis(
        kind=Fraction,
        meaning="Probabilities of an expert mask: 0 is weakly supervised, 1 fully, what lies between semi-supervised.",
        heading="p",
        label=lambda value: f"p={value}",
        words=lambda value: f"p = {value:g}",
        cell=lambda value: f"{value:g}",
    )
    init: str = axis(
        kind=str,
        meaning="Where the encoder begins: random, imagenet, moco, chexpert, or a file or URI of weights.",
        heading="init",
        label=lambda value: f"init={value}",
        words=str,
    )
    weak_n: int = axis(
        kind=Positive,
        meaning="Sizes of the weak set.",
        heading="weak_n",
        label=lambda value: f"weak_n={value}" if value else "",
        words=lambda value: f"{value} weak",
        cell=lambda value: str(value or "–"),
        without_pseudo_masks=0,
    )
    num_expert: int | None = axis(
        kind=Positive | None,
        meaning="Numbers of expert masks that train and tune; null takes all.",
        heading="experts",
        label=lambda value: "" if value is None else f"num_expert={value}",
        words=lambda value: f"{value or 'all'} experts",
        cell=lambda value: str(value or "all"),
    )
    architecture: str = axis(
        kind=Name,
        meaning="Segmentation networks of smp.",
        heading="network",
        section="segmentation",
        label=str,
        words=str,
    )
    encoder: str = axis(
        kind=Name,
        meaning="Encoders of smp, or of timm as tu-...",
        heading="network",
        section="segmentation",
        label=str,
        words=str,
    )
    trial: int = field(default=-1)

    def canonical(self) -> "SweepPoint":
        """Return the point in the form in which points that are the same training are equal."""
        if self.p != 1:
            return self
        unused = {axis.name: axis.without_pseudo_masks for axis in AXES if axis.without_pseudo_masks is not ...}
        return replace(self, **unused)

    @property
    def setting(self) -> "SweepPoint":
        """The point without its trial."""
        return replace(self, trial=-1)

    @property
    def network(self) -> str:
        """`architecture/encoder`."""
        return f"{self.architecture}/{self.encoder}"

    @property
    def has_paper_network(self) -> bool:
        """Whether the network is the paper's, DeepLabv3+ on ResNet18."""
        return (self.architecture, self.encoder) == PAPER_NETWORK

    @property
    def label(self) -> str:
        """The point's values in one line, such as `gradcam p=0.5 init=chexpert weak_n=8 trial=0`."""
        parts = [axis.label(getattr(self, axis.name)) for axis in AXES if axis.heading != "network"]
        if not self.has_paper_network:
            parts.append(self.network)
        if self.trial >= 0:
            parts.append(f"trial={self.trial}")
        return " ".join(filter(None, parts))


AXES: tuple[Axis, ...] = tuple(
    replace(declared.metadata["axis"], name=declared.name)
    for declared in fields(SweepPoint)
    if "axis" in declared.metadata
)
SWEEP_AXES = tuple(axis for axis in AXES if axis.section == "sweep")
_LOOPS = ("method", "architecture", "encoder", "init", "weak_n", "num_expert", "p")
_COLUMNS = ("method", "init", "p", "weak_n", "num_expert", "architecture", "encoder")


def loops() -> list[str]:
    """Return the names of the axes in the order of the nested loops over them, the outermost first.

    Axes that _LOOPS does not name come first. Trials are the innermost loop, inside all axes.
    """
    return [*(axis.name for axis in AXES if axis.name not in _LOOPS), *_LOOPS]


def used_axes(points: Sequence[SweepPoint]) -> list[Axis]:
    """Return the axes that tables of some points show: an axis with a default only if a point has another value."""
    return [axis for axis in AXES if axis.default is ... or any(getattr(p, axis.name) != axis.default for p in points)]


def columns(points: Sequence[SweepPoint]) -> list[str]:
    """Return the names of the axes of `points` in the order of results.csv's columns: _COLUMNS, then the others."""
    used = [axis.name for axis in used_axes(points)]
    return [*(name for name in _COLUMNS if name in used), *(name for name in used if name not in _COLUMNS)]


def setting_table(points: Sequence[SweepPoint]) -> tuple[list[str], list[list[str]]]:
    """Return the values of points for printed tables.

    Args:
        points: sweep points or settings.

    Returns:
        The headings of the axes' columns, and for each point a row of cells; p comes last, next to the results.
    """
    axes = sorted(used_axes(points), key=lambda axis: axis.name == "p")
    rows = []
    for point in points:
        cells: dict[str, list[str]] = {}
        for axis in axes:
            cells.setdefault(axis.heading, []).append(axis.cell(getattr(point, axis.name)))
        rows.append(["/".join(values) for values in cells.values()])
    return list(dict.fromkeys(axis.heading for axis in axes)), rows


def extra_words(point: SweepPoint) -> list[str]:
    """Return, as texts for a sentence, the values of `point` that differ from the default of their axis."""
    extra = [axis for axis in AXES if axis.default is not ... and getattr(point, axis.name) != axis.default]
    return [axis.words(getattr(point, axis.name)) for axis in extra]


def value_words(name: str, point: SweepPoint) -> str:
    """Return the value of `point` on the axis `name` as a text for a sentence, such as `p = 0.9`."""
    words = next(axis.words for axis in AXES if axis.name == name)
    return words(getattr(point, name))
