"""Every knob of a study, typed and frozen: a YAML file plus `section.field=value` overrides gives a StudyConfig.

A config file is complete (no inheritance, no include); unknown keys are refused with the nearest known one. Identity
(what changes the numbers) and execution (where and how fast) are told apart by `pipeline`, which picks what a step hashes.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from chexseg_ray.errors import InputError

T = TypeVar("T")
Number = TypeVar("Number", int, float)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _unique(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise ValueError("must name at least one value")
    repeated = [v for i, v in enumerate(values) if v in values[:i]]
    if repeated:
        raise ValueError(f"names {repeated[0]!r} twice")
    return values


Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Scale = Annotated[float, Field(gt=0, le=4)]
Split = Literal["weak", "expert_train", "validation"]
Names = Annotated[tuple[str, ...], Field(strict=False)]
ByWeakN = Annotated[dict[Seed, Positive], Field(strict=False)]
RateByWeakN = Annotated[dict[Seed, LearningRate], Field(strict=False)]
Resource = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Normalisation = Literal["imagenet", "inception", "chexpert"]
OneOrMore = Annotated[str, Field(min_length=1)] | Names


class PhantomConfig(_Section):
    """The phantom data set, written when `data.root` is null."""

    num_train_patients: Positive
    num_expert_images: Positive
    num_test_images: Positive
    long_side: Annotated[int, Field(ge=64)]
    seed: Seed


class DataConfig(_Section):
    """Where images, image-level labels and expert masks come from, and how they are split. All paths are below `root`.

    `benchmark_masks` are another reader's masks of the test images, measured as the models are (CheXlocalize's hb_segmentations_test.json)."""

    root: str | None
    licence: str | None
    pathologies: Names
    columns: Annotated[dict[str, OneOrMore], Field(strict=False)]
    weak_csv: str | None
    expert_csv: str | None
    expert_masks: str | None
    test_csv: str | None
    test_masks: str | None
    benchmark_masks: str | None
    num_validation: Annotated[int, Field(ge=0)]
    num_test: Positive | None
    split_seed: Seed
    views: Annotated[tuple[Literal["frontal", "lateral"], ...], Field(strict=False)]
    image_size: Annotated[int, Field(ge=32, multiple_of=32)]
    max_reject_fraction: Fraction
    allow_expert_rejects: bool
    phantom: PhantomConfig

    _check = field_validator("pathologies", "views")(_unique)

    @model_validator(mode="after")
    def _sources_fit(self) -> Self:
        known = ("Path", "Patient", "Frontal/Lateral", *self.pathologies)
        unknown = [name for name in self.columns if name not in known]
        if unknown:
            raise ValueError(f"columns names {unknown[0]!r}: it maps Path, Patient, Frontal/Lateral and data.pathologies to the names in the files")
        if (self.expert_csv is None) != (self.expert_masks is None):
            raise ValueError("expert_csv and expert_masks go together: name both, or neither")
        if (self.test_csv is None) != (self.test_masks is None):
            raise ValueError("test_csv and test_masks go together: name both, or neither")
        if (self.test_csv is None) == (self.num_test is None):
            raise ValueError("name test_csv and test_masks, or num_test images to split off expert_csv; not both, not neither")
        if self.test_csv is None and self.expert_csv is None:
            raise ValueError("num_test images come from expert_csv, which is null")
        if self.expert_csv is not None and self.num_validation < 1:
            raise ValueError("num_validation must be at least 1 when there are expert masks")
        return self

    @field_validator("weak_csv", "expert_csv", "expert_masks", "test_csv", "test_masks", "benchmark_masks")
    @classmethod
    def _below_the_root(cls, value: str | None) -> str | None:
        if value is not None and (not value or value.startswith("/") or "\\" in value or ":" in value or ".." in value.split("/")):
            raise ValueError("is no plain path below data.root: put the file there, and name it from there")
        return value

    @field_validator("columns")
    @classmethod
    def _column_names(cls, value: dict[str, str | tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
        return {name: own if isinstance(own, str) else _unique(own) for name, own in value.items()}

    @property
    def names_in_files(self) -> dict[str, list[str]]:
        """What `columns` says: the names that the files may use, preferred first."""
        return {name: [value] if isinstance(value, str) else list(value) for name, value in self.columns.items()}


class EncoderClassifierConfig(_Section):
    """The image-level classifier whose trunk is init `chexpert`; its network is the segmentation encoder (paper section 3.3.1)."""

    init: str
    uncertainty: Literal["ignore", "zeros", "ones", "threeclass"]
    blanks: Literal["zeros", "ignore"]
    normalisation: Normalisation
    train_splits: Annotated[tuple[Split, ...], Field(strict=False)]
    validation_splits: Annotated[tuple[Split, ...], Field(strict=False)]
    selection_pathologies: Names
    batch_size: Annotated[int, Field(ge=2)]
    num_replicas: Positive
    learning_rate: LearningRate
    num_updates: Positive
    validate_every: Positive
    seed: Seed

    _check = field_validator("train_splits", "selection_pathologies")(_unique)

    @model_validator(mode="after")
    def _splits_differ(self) -> Self:
        both = [split for split in self.train_splits if split in self.validation_splits]
        if both:
            raise ValueError(f"train_splits and validation_splits both name {both[0]!r}: a checkpoint is not chosen on its training images")
        return self


class ClassifierConfig(EncoderClassifierConfig):
    """The image-level classifier that CAMs are made with."""

    architecture: Literal["densenet121", "resnet18"]


class PretrainingConfig(_Section):
    """Encoder weights from outside. `imagenet_files`: a file or URI for an encoder's name; an encoder that is not named is looked for in
    the caches of torchvision and smp, and downloaded when `download` says so. `normalisation`: of a file that does not say, by its path."""

    imagenet_files: Annotated[dict[str, str], Field(strict=False)]
    normalisation: Annotated[dict[str, Normalisation], Field(strict=False)]
    download: bool


class MocoConfig(_Section):
    """MoCo v2 on X-rays (MoCo-CXR), for init `moco`; its network is the segmentation encoder."""

    init: str
    normalisation: Normalisation
    train_splits: Annotated[tuple[Split, ...], Field(strict=False)]
    queue_size: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    dimensions: Positive
    rotation_degrees: Annotated[float, Field(ge=0, le=180)]
    min_crop: Annotated[float, Field(gt=0, le=1)]
    batch_size: Annotated[int, Field(ge=2)]
    num_replicas: Positive
    learning_rate: LearningRate
    milestones: Annotated[tuple[Positive, ...], Field(strict=False)]
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    num_updates: Positive
    seed: Seed

    _check = field_validator("train_splits")(_unique)

    @model_validator(mode="after")
    def _queue_fits(self) -> Self:
        if self.queue_size % self.batch_size:
            raise ValueError(f"queue_size={self.queue_size} is no multiple of batch_size={self.batch_size}")
        return self


class CamsConfig(_Section):
    """Grad-CAM in closed form (paper appendix A.1, eq. 1 and 2)."""

    variant: Literal["post_relu", "pre_relu"]
    fine_grid: bool
    batch_size: Positive


class PseudoMasksConfig(_Section):
    """From a map to a mask: threshold per pathology, gate per image."""

    thresholds: Literal["tuned", "otsu", "fixed"]
    fixed_threshold: Annotated[float, Field(gt=0, lt=1)]
    grid_step: Annotated[float, Field(ge=0.01, le=0.5)]
    gate: Literal["label", "probability", "none"]
    gate_probability: Fraction


class RandomWalkConfig(_Section):
    """Neighbours closer than `radius` cells, affinities to the power `beta`, `steps` steps."""

    radius: Annotated[int, Field(ge=2)]
    beta: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    steps: Positive


# what the paper's released code does, and the irn code that it builds on
RANDOM_WALKS = {
    "chexseg": RandomWalkConfig(radius=3, beta=5.0, steps=8),
    "irn": RandomWalkConfig(radius=5, beta=10.0, steps=256),
}


class IrnetConfig(_Section):
    """IRNet and the propagation of CAMs with it (paper appendix A.2 and B.1)."""

    encoder: str
    normalisation: Normalisation
    foreground: Annotated[float, Field(gt=0, lt=1)]
    background: Fraction
    radius: Annotated[int, Field(ge=2)]
    displacement: bool
    loss_weights: Literal["sum", "halves"]
    rescale: Annotated[tuple[Scale, Scale], Field(strict=False)]
    flip: bool
    batch_size: Positive
    learning_rate: LearningRate
    decay_power: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    num_updates: Positive
    seed: Seed
    instance_wise: bool
    random_walk: RandomWalkConfig
    flip_average: bool

    @field_validator("random_walk", mode="before")
    @classmethod
    def _preset(cls, value: object) -> object:
        if isinstance(value, str) and value not in RANDOM_WALKS:
            raise ValueError(f"is no preset: write {', '.join(RANDOM_WALKS)}, or {{radius: 3, beta: 5.0, steps: 8}}")
        return RANDOM_WALKS[value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        if self.background >= self.foreground:
            raise ValueError(f"background={self.background} must be below foreground={self.foreground}")
        if self.rescale[0] > self.rescale[1]:
            raise ValueError(f"rescale={list(self.rescale)}: the smaller scale stands first")
        if self.instance_wise and not self.displacement:
            raise ValueError("instance_wise groups cells by the displacement branch: set irnet.displacement=true")
        return self


class SegmentationConfig(_Section):
    """A network of smp on a mix of expert and pseudo masks (paper section 3.3.2: DeepLabv3+ on ResNet18).

    `architecture` and `encoder` are a name or a list, which is one more axis of the sweep. output_stride and atrous_rates are DeepLab's."""

    architecture: OneOrMore
    encoder: OneOrMore
    output_stride: Literal[8, 16]
    atrous_rates: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]
    normalisation: Normalisation
    batch_size: Annotated[int, Field(ge=2)]
    num_replicas: Positive
    learning_rate: LearningRate | RateByWeakN
    num_updates: Positive | ByWeakN
    num_validations: Positive
    dice_smoothing: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    thresholds: Literal["tuned", "fixed"]
    fixed_threshold: Fraction
    checkpoint: Literal["best", "last"]
    min_positives: Positive

    @field_validator("architecture", "encoder")
    @classmethod
    def _names(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return value if isinstance(value, str) else _unique(value)

    @property
    def architectures(self) -> tuple[str, ...]:
        return (self.architecture,) if isinstance(self.architecture, str) else self.architecture

    @property
    def encoders(self) -> tuple[str, ...]:
        return (self.encoder,) if isinstance(self.encoder, str) else self.encoder


Methods = Annotated[tuple[Literal["gradcam", "irnet"], ...], Field(strict=False)]
Ps = Annotated[tuple[Fraction, ...], Field(strict=False)]
WeakNs = Annotated[tuple[Positive, ...], Field(strict=False)]
NumExperts = Annotated[tuple[Positive | None, ...], Field(strict=False)]


class GridConfig(_Section):
    """One more grid of sweep points; an axis, or the number of trials, that it leaves out is the sweep's own."""

    method: Methods | None = None
    p: Ps | None = None
    init: Names | None = None
    weak_n: WeakNs | None = None
    num_expert: NumExperts | None = None
    trials: Positive | None = None

    @field_validator("method", "p", "init", "weak_n", "num_expert")
    @classmethod
    def _values(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if values is None else _unique(values)


class SweepConfig(_Section):
    """The grid of sweep points, each list one axis; and the grids that `also` adds."""

    method: Methods
    p: Ps
    init: Names
    weak_n: WeakNs
    num_expert: NumExperts
    trials: Positive
    seed: Seed
    also: Annotated[tuple[GridConfig, ...], Field(strict=False)]

    _check = field_validator("method", "p", "init", "weak_n", "num_expert")(_unique)

    def every(self, axis: str) -> tuple[Any, ...]:
        """All values of an axis in any of the grids, each once."""
        values = [getattr(self, axis), *(getattr(grid, axis) or () for grid in self.also)]
        return tuple(dict.fromkeys(value for own in values for value in own))


class ContrastConfig(_Section):
    """A difference that is asked beforehand: one axis has the two values [first, second], the others one value each; an axis that is left out
    stands for all of its values, each a contrast of its own."""

    method: Literal["gradcam", "irnet"] | Methods | None = None
    p: Fraction | Annotated[tuple[Fraction, ...], Field(strict=False)] | None = None
    init: OneOrMore | None = None
    weak_n: Positive | Annotated[tuple[Positive, ...], Field(strict=False)] | None = None
    num_expert: Positive | NumExperts | None = None
    architecture: OneOrMore | None = None
    encoder: OneOrMore | None = None

    @model_validator(mode="after")
    def _one_pair(self) -> Self:
        pairs = [name for name, value in self if isinstance(value, tuple)]
        if len(pairs) != 1 or len(set(getattr(self, pairs[0]))) != 2 or len(getattr(self, pairs[0])) != 2:
            raise ValueError("a contrast is between two values of one axis: write {p: [0.9, 1.0], init: chexpert}")
        return self

    @property
    def axis(self) -> str:
        """The axis that has two values."""
        return next(name for name, value in self if isinstance(value, tuple))


class ReportConfig(_Section):
    """How results are shown; never part of a step's identity.

    Only the contrasts get p-values, corrected for their number (Holm)."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    title: str
    interval_level: Annotated[float, Field(gt=0, lt=1)]
    bootstrap_replicates: Annotated[int, Field(ge=100)]
    contrasts: Annotated[tuple[ContrastConfig, ...], Field(strict=False)]


class TaskCompute(_Section):
    """What each Ray task of a stage asks for."""

    num_cpus: Annotated[float, Field(gt=0)]


class ActorCompute(_Section):
    """What each actor of a Ray Data stage asks for, and how many there may be."""

    num_cpus: Annotated[float, Field(gt=0)]
    num_gpus: Annotated[float, Field(ge=0)]
    min_actors: Positive
    max_actors: Positive


class DataParallelCompute(_Section):
    """What each worker of one training asks for; several share a batch. 0 workers is Ray Train's local mode."""

    num_workers: Annotated[int, Field(ge=0)]
    num_cpus: Annotated[float, Field(gt=0)]
    num_gpus: Annotated[float, Field(ge=0)]
    threads: Positive


class TrialCompute(_Section):
    """What each trial of the sweep asks for: numbers, or mappings from weak_n (a p = 1 point takes the smallest's).

    With 0 workers it trains in its own process; with more, each worker asks for num_cpus and num_gpus."""

    num_workers: Count | Annotated[dict[Seed, Count], Field(strict=False)]
    num_cpus: Annotated[float, Field(gt=0)] | Annotated[dict[Seed, Annotated[float, Field(gt=0)]], Field(strict=False)]
    num_gpus: Resource | Annotated[dict[Seed, Resource], Field(strict=False)]
    threads: Positive


class RatesConfig(_Section):
    """What the plan reckons with. FLOP rates are sustained ones, per GPU and per CPU thread; prices are per hour, in `currency`."""

    gpu_flops_per_second: Annotated[float, Field(gt=0)]
    cpu_flops_per_second: Annotated[float, Field(gt=0)]
    decode_seconds: Annotated[float, Field(gt=0)]
    gpu_hour: Resource
    cpu_hour: Resource
    currency: str
    images: Annotated[dict[Literal["weak", "expert_train", "validation", "test"], Count], Field(strict=False)]


class NodeKind(_Section):
    """A kind of node that the cluster's autoscaler may add, and how many of it at most."""

    num_cpus: Annotated[float, Field(gt=0)]
    num_gpus: Resource
    max_nodes: Positive


class ComputeConfig(_Section):
    """Where and how fast; never part of a step's identity.

    `autoscaling`: what the cluster's autoscaler may add, as Ray does not tell; not needed where `ray up` made the cluster. `shared_folders`:
    every node of the cluster has the local roots (NFS, Lustre). max_failures: -1 is no limit."""

    images: TaskCompute
    pseudo_masks: TaskCompute
    cams: ActorCompute
    classifier: DataParallelCompute
    moco: DataParallelCompute
    irnet: DataParallelCompute
    propagation: ActorCompute
    segmentation: TrialCompute
    max_failures: Annotated[int, Field(ge=-1)]
    state_seconds: Annotated[float, Field(ge=0)]
    rates: RatesConfig
    dashboard: bool
    autoscaling: Annotated[tuple[NodeKind, ...], Field(strict=False)]
    shared_folders: bool


class StoreConfig(_Section):
    """The artefact store: a folder or a pyarrow.fs URI such as s3://bucket/study."""

    root: str


class StudyConfig(_Section):
    """A whole study. Every value is spelled out in its file."""

    data: DataConfig
    classifier: ClassifierConfig
    encoder_classifier: EncoderClassifierConfig
    pretraining: PretrainingConfig
    moco: MocoConfig
    cams: CamsConfig
    irnet: IrnetConfig
    pseudo_masks: PseudoMasksConfig
    segmentation: SegmentationConfig
    sweep: SweepConfig
    report: ReportConfig
    compute: ComputeConfig
    store: StoreConfig

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        self._check_sources()
        sizes = self.sweep.every("weak_n")
        compute = self.compute.segmentation
        for where, section, names in (("segmentation", self.segmentation, ("learning_rate", "num_updates")),
                                      ("compute.segmentation", compute, ("num_workers", "num_cpus", "num_gpus"))):  # fmt: skip
            for name in names:
                value = getattr(section, name)
                missing = [n for n in sizes if n not in value] if isinstance(value, dict) else []
                if missing:
                    raise ValueError(f"{where}.{name} has no value for weak_n {missing[0]}: add it to the mapping")
        for name in ("classifier", "encoder_classifier"):
            unknown = [n for n in getattr(self, name).selection_pathologies if n not in self.data.pathologies]
            if unknown:
                raise ValueError(f"{name}.selection_pathologies names {unknown[0]!r}, which data.pathologies lacks")
        if self.classifier.architecture != "densenet121":
            if self.cams.fine_grid:
                raise ValueError("cams.fine_grid leaves out DenseNet121's last pooling: set classifier.architecture=densenet121")
            if self.cams.variant == "pre_relu":
                raise ValueError("cams.variant=pre_relu is DenseNet121's norm5: set classifier.architecture=densenet121")
        self._check_inits()
        for stage in ("cams", "propagation"):
            if getattr(self.compute, stage).max_actors < getattr(self.compute, stage).min_actors:
                raise ValueError(f"compute.{stage}.max_actors is below min_actors")
        if self.irnet.batch_size % max(1, self.compute.irnet.num_workers):
            raise ValueError(f"irnet.batch_size={self.irnet.batch_size} is no multiple of compute.irnet.num_workers={self.compute.irnet.num_workers}")
        self._check_replicas()
        return self

    def _check_inits(self) -> None:
        inits = {f"{name}.init": getattr(self, name).init for name in ("classifier", "encoder_classifier", "moco")}
        inits["irnet.encoder"] = self.irnet.encoder
        for field, init in inits.items():
            if init in ("chexpert", "moco"):
                raise ValueError(f"{field}={init}: the weights are made by this study; begin with random, imagenet or a file")
        files = {*self.sweep.every("init"), *inits.values(), *self.pretraining.imagenet_files.values()}
        encoders = {*self.segmentation.encoders, self.classifier.architecture, "resnet50"}
        pretraining = self.pretraining
        for field, named, known in (("normalisation", pretraining.normalisation, files), ("imagenet_files", pretraining.imagenet_files, encoders)):
            unused = [name for name in named if name not in known]
            if unused:
                what = "is no init and no ImageNet file" if field == "normalisation" else "is no encoder"
                raise ValueError(f"pretraining.{field} names {unused[0]!r}, which {what} of this study{_did_you_mean(unused[0], sorted(known))}")

    def _check_replicas(self) -> None:
        """A batch is split into num_replicas parts, over 0, 1 or that many workers."""
        computes = {"classifier": "classifier", "encoder_classifier": "classifier", "moco": "moco", "segmentation": "segmentation"}
        for name, stage in computes.items():
            section, workers = getattr(self, name), getattr(self.compute, stage).num_workers
            if section.batch_size % section.num_replicas or (section.num_replicas > 1 and section.batch_size // section.num_replicas < 2):
                raise ValueError(f"{name}.batch_size={section.batch_size} cannot be split into num_replicas={section.num_replicas} of two or more")
            wrong = [n for n in (workers.values() if isinstance(workers, dict) else [workers]) if n not in (0, 1, section.num_replicas)]
            if wrong:
                raise ValueError(f"compute.{stage}.num_workers={wrong[0]} must be 0, 1 or {name}.num_replicas={section.num_replicas}")

    def _check_sources(self) -> None:
        every = self.sweep.every("p")
        mixed = [p for p in every if 0 < p < 1]
        weak = any(p < 1 for p in every)
        if self.data.weak_csv is None and (weak or "chexpert" in self.sweep.every("init")):
            raise ValueError("data.weak_csv is null, but sweep.p below 1 and sweep.init chexpert need weakly labelled images")
        have = {"weak": self.data.weak_csv is not None} | dict.fromkeys(("expert_train", "validation"), self.data.expert_csv is not None)
        lacking = [split for split in self.moco.train_splits if not have[split]] if "moco" in self.sweep.every("init") else []
        if lacking:
            raise ValueError(f"moco.train_splits names {lacking[0]!r}, whose CSV is null: name the CSV or other splits")
        if self.data.expert_csv is not None:
            return
        if mixed or 1.0 in every:
            raise ValueError(f"data.expert_csv is null, but sweep.p={[*mixed, 1.0][0]} needs expert masks: name them or set sweep.p=[0]")
        if self.pseudo_masks.thresholds == "tuned" or self.segmentation.thresholds == "tuned" or self.segmentation.checkpoint == "best":
            raise ValueError(
                "data.expert_csv is null, so nothing can be tuned: set pseudo_masks.thresholds=otsu (or fixed), "
                "segmentation.thresholds=fixed and segmentation.checkpoint=last"
            )


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads 1e-3 as a number (YAML 1.2)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{where}{line}: {problem}: write plain YAML") from None
    except (ValueError, TypeError) as error:  # a date that is none, a key that is a list
        raise InputError(f"{where}: {' '.join(str(error).split())}: write plain YAML") from None


def _set(tree: Any, override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise InputError(f"override {override!r}: write section.field=value")
    *parents, last = path.split(".")
    for part in parents:
        if not isinstance(tree, dict) or not isinstance(tree.get(part), dict):
            known = list(tree) if isinstance(tree, dict) else []
            raise InputError(f"override {override!r}: no section {part!r}{_did_you_mean(part, known)}")
        tree = tree[part]
    if last not in tree:
        raise InputError(f"override {override!r}: no field {last!r}{_did_you_mean(last, list(tree))}")
    tree[last] = _parse_yaml(text, f"override {override!r}")


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _known_fields(location: Sequence[str | int]) -> list[str]:
    model: Any = StudyConfig
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else None
    return list(getattr(model, "model_fields", {}))


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key{_did_you_mean(str(first['loc'][-1]), _known_fields(first['loc']))}"
    elif first["type"] == "missing":
        message = "missing: a config file spells out every value"
    elif where and not isinstance(first["input"], Mapping):
        message = f"{message} (got {first['input']!r})"
    return f"{where}: {message}" if where else message


def parse_config(text: str, overrides: Sequence[str] = (), source: str = "config") -> StudyConfig:
    """Parse YAML text and `section.field=value` overrides.

    Raises:
        InputError: one line naming the source, field and rule.
    """
    tree = _parse_yaml(text, source)
    if not isinstance(tree, dict):
        raise InputError(f"{source}: not a mapping of sections")
    for override in overrides:
        _set(tree, override)
    try:
        return StudyConfig.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{source}: {_explain(error)}") from None


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> StudyConfig:
    """Read a config file. Raises InputError when it is absent, unreadable or does not hold."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}): name a YAML file") from None
    return parse_config(text, overrides, str(path))


def for_weak_n(value: Number | Mapping[int, Number], weak_n: int) -> Number:
    """The value for one size of the weak set; weak_n 0 (p = 1) takes the smallest size's."""
    if not isinstance(value, Mapping):
        return value
    return value[weak_n] if weak_n else value[min(value)]
