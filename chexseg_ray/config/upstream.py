"""The sections of what the trainings share: classifiers, encoder weights, MoCo, CAMs, IRNet, pseudo masks."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from chexseg_ray.config.fields import (
    AboveZero,
    BatchSize,
    Fraction,
    LearningRate,
    Names,
    Normalisation,
    NotNegative,
    OpenFraction,
    Positive,
    Precision,
    Section,
    Seed,
    Split,
    Splits,
)

NAMED_INITS = ("random", "imagenet", "moco", "chexpert")  # any other init is the path or URI of a file
IRNET_ENCODER = "resnet50"


class EncoderClassifierConfig(Section):
    """The image-level classifier whose trunk is the weights `chexpert` (paper section 3.3.1).

    Its network is the segmentation encoder.
    """

    init: str
    """Initial weights of its trunk: random, imagenet, or a file or URI of weights."""
    uncertainty: Literal["ignore", "zeros", "ones", "threeclass"]
    """What a label -1 becomes: no target, absent, present, or a class of its own (CheXpert's four policies)."""
    blanks: Literal["zeros", "ignore"]
    """What a blank label becomes: absent, or no target."""
    normalisation: Normalisation
    """Mean and deviation of the input."""
    train_splits: Splits
    """Splits whose labels train."""
    validation_splits: Annotated[tuple[Split, ...], Field(strict=False)]
    """Splits whose labels choose the checkpoint."""
    selection_pathologies: Names
    """Pathologies whose mean AUROC chooses the checkpoint."""
    batch_size: BatchSize
    """Images of one update."""
    num_replicas: Positive
    """Parts of a batch over each of which BatchNorm takes its statistics; so many workers may share a batch."""
    precision: Precision = "float32"
    """Arithmetic of the network's training pass: float32, or bf16, which is faster on GPUs. Inference is float32."""
    learning_rate: LearningRate
    """Adam's learning rate."""
    num_updates: Positive
    """Number of updates."""
    validate_every: Positive
    """Updates between two validations."""
    seed: Seed
    """Seed of weights, batches and dropout."""

    @model_validator(mode="after")
    def _splits_differ(self) -> Self:
        both = [split for split in self.train_splits if split in self.validation_splits]
        if both:
            name = both[0]
            rule = "a checkpoint must not be chosen on its training images"
            raise ValueError(f"train_splits and validation_splits both name {name!r}: {rule}: remove it from one")
        return self


class ClassifierConfig(EncoderClassifierConfig):
    """The image-level classifier from which CAMs are made."""

    architecture: Literal["densenet121", "resnet18"]
    """Its network, one of torchvision's."""


class PretrainingConfig(Section):
    """Encoder weights that this study does not train."""

    imagenet_files: Annotated[dict[str, str], Field(strict=False)]
    """File or URI of ImageNet weights by encoder; for other encoders the caches of torchvision, smp and timm are
    searched."""
    normalisation: Annotated[dict[str, Normalisation], Field(strict=False)]
    """Mean and deviation of the input, by the path of a file of weights that does not name them."""
    download: bool
    """Whether ImageNet weights that are not on this machine may be downloaded."""


class MocoConfig(Section):
    """MoCo v2 on X-rays without labels (MoCo-CXR), which makes the weights `moco`.

    Its network is the segmentation encoder.
    """

    init: str
    """Initial weights of both encoders: random, imagenet, or a file or URI of weights."""
    normalisation: Normalisation
    """Mean and deviation of the input."""
    train_splits: Splits
    """Splits whose images train."""
    queue_size: Positive
    """Number of keys that a query is compared with; a multiple of batch_size."""
    momentum: Annotated[float, Field(ge=0, lt=1)]
    """The share of the key encoder's weights that is kept at each update."""
    temperature: AboveZero
    """Divisor of the cosine similarities."""
    dimensions: Positive
    """Length of queries and keys."""
    rotation_degrees: Annotated[float, Field(ge=0, le=180)]
    """Largest angle, in degrees, by which a view is turned."""
    min_crop: Annotated[float, Field(gt=0, le=1)]
    """Smallest side of a view's square, as a share of the content's shorter side."""
    batch_size: BatchSize
    """Images of one update."""
    num_replicas: Positive
    """Parts of a batch over each of which BatchNorm takes its statistics; so many workers may share a batch."""
    precision: Precision = "float32"
    """Arithmetic of both encoders' passes: float32, or bf16, which is faster on GPUs."""
    learning_rate: LearningRate
    """Adam's learning rate."""
    milestones: Annotated[tuple[Positive, ...], Field(strict=False)]
    """Numbers of updates after which the learning rate is divided by ten."""
    weight_decay: NotNegative
    """Adam's weight decay."""
    num_updates: Positive
    """Number of updates."""
    seed: Seed
    """Seed of weights, batches and views."""

    @model_validator(mode="after")
    def _queue_fits(self) -> Self:
        if self.queue_size % self.batch_size:
            raise ValueError(f"queue_size={self.queue_size} is not a multiple of batch_size={self.batch_size}")
        return self


class CamsConfig(Section):
    """Grad-CAM in closed form (paper appendix A.1, eq. 1 and 2)."""

    variant: Literal["post_relu", "pre_relu"]
    """The features that are weighted: those that the head averages, or DenseNet's before its last ReLU, as in the
    released code."""
    fine_grid: bool
    """Whether the map is made without DenseNet's last pooling, on a grid twice as fine."""
    batch_size: Positive
    """Images per forward pass; the last bits of a map depend on it."""


class PseudoMasksConfig(Section):
    """How a map becomes a mask: a threshold for each pathology, and a gate for each image."""

    thresholds: Literal["tuned", "otsu", "fixed"]
    """Thresholds of the maps: tuned on the expert training masks, Otsu's for each map, or `fixed_threshold`."""
    fixed_threshold: OpenFraction
    """Threshold of a map that is scaled to [0, 1]."""
    grid_step: Annotated[float, Field(ge=0.01, le=0.5)]
    """Step between the thresholds that are tried."""
    gate: Literal["label", "probability", "none"]
    """Which images may have a mask: those with label 1, those whose probability is above `gate_probability`, or all."""
    gate_probability: Fraction
    """The classifier's probability above which gate `probability` is open."""


class RandomWalkConfig(Section):
    """The random walk that propagates a CAM over neighbouring cells."""

    radius: Annotated[int, Field(ge=2)]
    """Cells closer than this distance, in cells, are neighbours."""
    beta: AboveZero
    """Exponent of the affinities."""
    steps: Positive
    """Number of steps of the walk."""


# what the paper's released code does, and the irn code that it builds on
RANDOM_WALKS = {
    "chexseg": RandomWalkConfig(radius=3, beta=5.0, steps=8),
    "irn": RandomWalkConfig(radius=5, beta=10.0, steps=256),
}


def _random_walk(value: object) -> object:
    """Replace the name of a preset by the preset."""
    if isinstance(value, str) and value not in RANDOM_WALKS:
        raise ValueError(f"is not a preset: write {', '.join(RANDOM_WALKS)}, or {{radius: 3, beta: 5.0, steps: 8}}")
    return RANDOM_WALKS[value] if isinstance(value, str) else value


class IrnetConfig(Section):
    """IRNet and the propagation of CAMs with it (paper appendix A.2 and B.1)."""

    encoder: str
    """Weights of its frozen ResNet50: random, imagenet, or a file or URI of weights."""
    normalisation: Normalisation
    """Mean and deviation of the input for encoder `random`; other weights have their own."""
    foreground: OpenFraction
    """Share of a CAM's maximum above which a cell is foreground."""
    background: Fraction
    """Share of a CAM's maximum up to which a cell is background."""
    radius: Annotated[int, Field(ge=2)]
    """Pairs of cells closer than this distance, in cells, are compared."""
    displacement: bool
    """Whether the displacement branch is trained."""
    loss_weights: Literal["sum", "halves"]
    """Weights of the three losses: the plain sum of the paper's eq. 7, or those of the irn code."""
    rescale: Annotated[
        tuple[Annotated[float, Field(gt=0, le=4)], Annotated[float, Field(gt=0, le=4)]], Field(strict=False)
    ]
    """Smallest and largest scale of a training image."""
    flip: bool
    """Whether training images are mirrored half of the time."""
    batch_size: Positive
    """Images of one update."""
    learning_rate: LearningRate
    """SGD's learning rate at the start; the displacement branch has ten times as much."""
    decay_power: NotNegative
    """Exponent of the polynomial decay of the learning rate."""
    weight_decay: NotNegative
    """SGD's weight decay."""
    num_updates: Positive
    """Number of updates."""
    seed: Seed
    """Seed of weights, batches and crops."""
    instance_wise: bool
    """Whether a CAM is split by instance before it is propagated."""
    random_walk: Annotated[
        RandomWalkConfig,
        BeforeValidator(_random_walk, json_schema_input_type=Literal["chexseg", "irn"] | RandomWalkConfig),
    ]
    """chexseg, irn, or {radius, beta, steps}."""
    flip_average: bool
    """Whether a boundary map is the mean over the image and its mirror image."""

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        if self.background >= self.foreground:
            raise ValueError(f"background={self.background} must be below foreground={self.foreground}")
        if self.rescale[0] > self.rescale[1]:
            raise ValueError(f"rescale={list(self.rescale)}: the smaller scale comes first")
        if self.instance_wise and not self.displacement:
            raise ValueError("instance_wise groups cells by the displacement branch: set irnet.displacement=true")
        return self
