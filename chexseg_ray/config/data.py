"""The sections `data` and `data.phantom`: where images, labels and masks come from, and how they are split."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from chexseg_ray.config.fields import (
    Count,
    Fraction,
    Modality,
    Names,
    OneOrMore,
    Positive,
    Section,
    Seed,
    list_of,
    unique,
)
from chexseg_ray.errors import quoted


class PhantomConfig(Section):
    """The phantom data set, which is drawn when `data.root` is null."""

    num_train_patients: Positive
    """Patients of the weak split, each with one to three studies of one or two views."""
    num_expert_images: Positive
    """Annotated X-rays (with at least one finding) for training and validation together; normal ones come on top."""
    num_test_images: Positive
    """The same for the test split."""
    long_side: Annotated[int, Field(ge=64)]
    """Pixels of an X-ray's longer side."""
    seed: Seed
    """Draws anatomy, findings and labels."""


class DataConfig(Section):
    """The source of images, image-level labels and expert masks, and how they are split.

    File names are relative to `root`.
    """

    root: str | None
    """Folder or URI of the data; null draws phantoms instead."""
    licence: str | None
    """The data's licence, shown on the report and in the card of an exported model."""
    pathologies: Names
    """Names of the K channels, in their order."""
    columns: Annotated[dict[str, OneOrMore], Field(strict=False)]
    """What the files call `Path`, `Patient`, `Frontal/Lateral` and the pathologies: one name, or a list of names of
    which each file has one."""
    weak_csv: str | None
    """CSV of the images with image-level labels, in CheXpert's format."""
    expert_csv: str | None
    """CSV of the images with expert masks, for training and validation."""
    expert_masks: str | None
    """Their masks, as CheXlocalize's JSON."""
    test_csv: str | None
    """CSV of the test images; null splits `num_test` images off `expert_csv`."""
    test_masks: str | None
    """Expert masks of the test images."""
    benchmark_masks: str | None
    """Another reader's masks of the test images, measured as the models are.

    In CheXlocalize: hb_segmentations_test.json."""
    num_validation: Count
    """Expert images that choose checkpoints and thresholds; the other expert images train."""
    num_test: Positive | None
    """Test images to split off `expert_csv`, where there is no `test_csv`."""
    split_seed: Seed
    """Seed of the draw of validation and test patients."""
    views: list_of(Literal["frontal", "lateral"])  # type: ignore[valid-type]
    """The views that are used."""
    image_size: Annotated[int, Field(ge=32, multiple_of=32)]
    """Side length S, in pixels, of the square that every X-ray is letterboxed into."""
    max_reject_fraction: Fraction
    """The share of a split's images that may be unusable before the study stops; changes no address."""
    allow_expert_rejects: bool
    """Whether any expert, validation or test image may be unusable; changes no address."""
    allow_modalities: Annotated[tuple[Modality, ...], Field(strict=False)] = ()
    """Modalities of DICOM files that are used beside CR, DX, RF and XA, such as OT; FOR PROCESSING for raw data."""
    phantom: PhantomConfig | None
    """The phantoms to draw; null where `root` names the data."""

    @model_validator(mode="after")
    def _sources_fit(self) -> Self:
        known = ("Path", "Patient", "Frontal/Lateral", *self.pathologies)
        unknown = [name for name in self.columns if name not in known]
        if unknown:
            meant = "it maps Path, Patient, Frontal/Lateral and data.pathologies to the names in the files"
            raise ValueError(f"columns names {quoted(unknown[0])}: {meant}")
        if self.root is None and self.phantom is None:
            raise ValueError(
                "root is null, so phantoms are drawn, and phantom is null: name the data, or the phantoms to draw"
            )
        if (self.expert_csv is None) != (self.expert_masks is None):
            raise ValueError("expert_csv and expert_masks go together: name both, or neither")
        if (self.test_csv is None) != (self.test_masks is None):
            raise ValueError("test_csv and test_masks go together: name both, or neither")
        if (self.test_csv is None) == (self.num_test is None):
            either = "test_csv and test_masks, or num_test images to split off expert_csv"
            raise ValueError(f"name {either}; not both, not neither")
        if self.test_csv is None and self.expert_csv is None:
            raise ValueError("num_test images come from expert_csv, which is null")
        if self.expert_csv is not None and self.num_validation < 1:
            raise ValueError("num_validation must be at least 1 when there are expert masks")
        return self

    @field_validator("weak_csv", "expert_csv", "expert_masks", "test_csv", "test_masks", "benchmark_masks")
    @classmethod
    def _below_the_root(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not value or value.startswith("/") or "\\" in value or ":" in value or ".." in value.split("/"):
            raise ValueError("is not a plain path below data.root: put the file there, and name it from there")
        return value

    @field_validator("columns")
    @classmethod
    def _column_names(cls, value: dict[str, str | tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
        return {name: names if isinstance(names, str) else unique(names) for name, names in value.items()}

    @field_validator("allow_modalities")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(unique(value))) if value else value

    @property
    def names_in_files(self) -> dict[str, list[str]]:
        """`columns` with a list of names per entry, preferred first."""
        return {name: [value] if isinstance(value, str) else list(value) for name, value in self.columns.items()}
