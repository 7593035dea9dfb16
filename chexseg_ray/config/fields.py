"""The base of all config sections, and the kinds of values that their fields take."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from chexseg_ray.errors import quoted

T = TypeVar("T")
Number = TypeVar("Number", int, float)


class Section(BaseModel):
    """A section of a config file: frozen, strict about types, without unknown keys.

    A field's docstring becomes its description in the JSON schema.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def unique(values: tuple[T, ...]) -> tuple[T, ...]:
    """Return the values unchanged, after a check.

    Raises:
        ValueError: the list is empty or names a value twice.
    """
    if not values:
        raise ValueError("must name at least one value")
    seen = set[T]()
    for value in values:
        if value in seen:
            raise ValueError(f"names {quoted(value)} twice")
        seen.add(value)
    return values


def list_of(kind: Any) -> Any:
    """Return the pydantic type of a YAML list of different values of the type `kind`, read as a tuple."""
    return Annotated[tuple[kind, ...], Field(strict=False), AfterValidator(unique)]


def tuple_of(kind: Any) -> Any:
    """Return the pydantic type of a YAML list of values of the type `kind`, which may repeat, read as a tuple."""
    return Annotated[tuple[kind, ...], Field(strict=False)]


def for_weak_n(value: Number | Mapping[int, Number], weak_n: int) -> Number:
    """Return the value that holds for one size of the weak set.

    Args:
        value: a number, or a mapping from each weak_n of the sweep to a number.
        weak_n: number of weak images; 0 (p = 1, no weak images) takes the value of the smallest size.
    """
    if not isinstance(value, Mapping):
        return value
    return value[weak_n] if weak_n else value[min(value)]


MODALITY = r"FOR PROCESSING|[A-Z][A-Z0-9]{1,15}"  # what a DICOM file may be called, or its raw data

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
LearningRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]
BatchSize = Annotated[int, Field(ge=2)]
Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[str, ...], Field(strict=False), AfterValidator(unique)]
OneOrMore = Name | Names
Modality = Annotated[str, Field(pattern=f"^({MODALITY})$")]
Split = Literal["weak", "expert_train", "validation"]
Splits = Annotated[tuple[Split, ...], Field(strict=False), AfterValidator(unique)]
Normalisation = Literal["imagenet", "inception", "chexpert"]
Precision = Literal["float32", "bf16"]
CountByWeakN = Annotated[dict[Seed, Positive], Field(strict=False)]
RateByWeakN = Annotated[dict[Seed, LearningRate], Field(strict=False)]
