"""The sections `segmentation`, `sweep` and `report`: the trainings that are compared, the axes, and the report."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, create_model, model_validator

from chexseg_ray.config.axes import AXES, SWEEP_AXES, Axis
from chexseg_ray.config.fields import (
    AboveZero,
    BatchSize,
    CountByWeakN,
    Fraction,
    LearningRate,
    Normalisation,
    OneOrMore,
    OpenFraction,
    Positive,
    Precision,
    RateByWeakN,
    Section,
    Seed,
    list_of,
    tuple_of,
)


class SegmentationConfig(Section):
    """The training of a segmentation network of smp on expert and pseudo masks (paper section 3.3.2)."""

    architecture: OneOrMore
    """A network of smp, such as deeplabv3plus; a list is one more axis of the sweep."""
    encoder: OneOrMore
    """An encoder of smp, or one of timm as `tu-...`; a list is one more axis of the sweep."""
    output_stride: Literal[8, 16]
    """Input pixels per cell of the last feature map (DeepLab only)."""
    atrous_rates: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]
    """Dilations of the pyramid (DeepLab only)."""
    normalisation: Normalisation
    """Mean and deviation of the input for init `random`; other weights have their own."""
    batch_size: BatchSize
    """Images of one update."""
    num_replicas: Positive
    """Parts of a batch over each of which BatchNorm takes its statistics; so many workers may share a batch."""
    precision: Precision = "float32"
    """Arithmetic of the network's training pass: float32, or bf16, which is faster on GPUs. Inference is float32."""
    learning_rate: LearningRate | RateByWeakN
    """Adam's learning rate: a number, or a mapping from weak_n."""
    num_updates: Positive | CountByWeakN
    """Number of updates: a number, or a mapping from weak_n; the same for every p, method and init."""
    num_validations: Positive
    """Number of validations during a training, at equal distances."""
    dice_smoothing: AboveZero
    """Added to numerator and denominator of the Dice loss."""
    thresholds: Literal["tuned", "fixed"]
    """Thresholds of the scores: tuned on the validation masks (scarce pathologies: on the expert training masks), or
    `fixed_threshold`."""
    threshold_grid: Literal["paper", "fine"] = "paper"
    """Thresholds that are tried: the paper's 0, .05, ..., .95, of which 0 makes a mask of the whole image; or `fine`,
    which has .001, .002, .005, .01, .02, .03, .04 in place of 0."""
    fixed_threshold: Fraction
    """Threshold of a score in [0, 1]."""
    checkpoint: Literal["best", "last"]
    """Which checkpoint is kept: the best by validation mIoU, or the last."""
    min_positives: Positive
    """Validation images that must show a pathology before its threshold is tuned on them."""

    @property
    def architectures(self) -> tuple[str, ...]:
        """The values of the axis `architecture`."""
        return (self.architecture,) if isinstance(self.architecture, str) else self.architecture

    @property
    def encoders(self) -> tuple[str, ...]:
        """The values of the axis `encoder`."""
        return (self.encoder,) if isinstance(self.encoder, str) else self.encoder


def _grid_field(axis: Axis) -> tuple[Any, Any]:
    return list_of(axis.kind) | None, Field(default=None, description=axis.meaning)


def _sweep_field(axis: Axis) -> tuple[Any, Any]:
    default = ... if axis.default is ... else (axis.default,)
    return list_of(axis.kind), Field(default=default, description=axis.meaning)


def _contrast_field(axis: Axis) -> tuple[Any, Any]:
    meaning = "One value, or the two that are compared."
    return axis.kind | tuple_of(axis.kind) | None, Field(default=None, description=meaning)


def _section_of(name: str, axes: Sequence[Axis], field: Callable[[Axis], tuple[Any, Any]]) -> Any:
    """Make a section with a field for each axis."""
    fields: Any = {axis.name: field(axis) for axis in axes}
    return create_model(name, __base__=Section, **fields)


_GridAxes: Any = _section_of("_GridAxes", SWEEP_AXES, _grid_field)
_SweepAxes: Any = _section_of("_SweepAxes", SWEEP_AXES, _sweep_field)
_ContrastAxes: Any = _section_of("_ContrastAxes", AXES, _contrast_field)


class GridConfig(_GridAxes):  # type: ignore[misc]
    """One more grid of sweep points; what it leaves out (an axis, the number of trials) is as in `sweep`."""

    trials: Positive | None = None
    """Number of trainings of each setting of this grid."""


class SweepConfig(_SweepAxes):  # type: ignore[misc]
    """The grid of sweep points, one list per axis, and further grids in `also`."""

    trials: Positive
    """Number of trainings of each setting, which differ in weak set and seed."""
    seed: Seed
    """Seed from which each trial's weak set, expert set and seed are drawn."""
    also: Annotated[tuple[GridConfig, ...], Field(strict=False)]
    """Further grids; two points that are the same training are trained once."""

    def every(self, axis: str) -> tuple[Any, ...]:
        """Return all values of an axis in any of the grids, each once."""
        lists = [getattr(self, axis), *(getattr(grid, axis) or () for grid in self.also)]
        return tuple(dict.fromkeys(value for values in lists for value in values))


class ContrastConfig(_ContrastAxes):  # type: ignore[misc]
    """A difference that is asked for beforehand: one axis has two values [first, second], other axes have one.

    An axis that is left out takes all of its values in turn, and each value gives a contrast of its own.
    """

    @model_validator(mode="after")
    def _one_pair(self) -> Self:
        pairs = [name for name, value in self if isinstance(value, tuple)]
        if len(pairs) != 1 or len(set(getattr(self, pairs[0]))) != 2 or len(getattr(self, pairs[0])) != 2:
            raise ValueError("a contrast is between two values of one axis: write {p: [0.9, 1.0], init: chexpert}")
        return self

    @property
    def axis(self) -> str:
        """The axis that has two values."""
        return str(next(name for name, value in self if isinstance(value, tuple)))


class ReportConfig(Section):
    """How results are shown; changes no step's address."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "study"
    """Name of the report's folder below `{store.root}/report`."""
    title: str = "chexseg_ray study"
    """Title of the page."""
    interval_level: OpenFraction = 0.95
    """Coverage of all intervals."""
    bootstrap_replicates: Annotated[int, Field(ge=100)] = 2000
    """Number of bootstrap replicates over the patients of the test set."""
    contrasts: Annotated[tuple[ContrastConfig, ...], Field(strict=False)] = ()
    """Differences that are asked for beforehand: only these get p-values, corrected for their number (Holm)."""
