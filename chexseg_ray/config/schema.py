"""The whole config of a study: all sections, typed and frozen."""

from typing import Self

from pydantic import model_validator

from chexseg_ray.config.data import DataConfig
from chexseg_ray.config.fields import Section
from chexseg_ray.config.resources import ComputeConfig
from chexseg_ray.config.rules import refuse_sections_that_do_not_fit
from chexseg_ray.config.sweep import ReportConfig, SegmentationConfig, SweepConfig
from chexseg_ray.config.upstream import (
    CamsConfig,
    ClassifierConfig,
    EncoderClassifierConfig,
    IrnetConfig,
    MocoConfig,
    PretrainingConfig,
    PseudoMasksConfig,
)


class StoreConfig(Section):
    """The folder that keeps everything a study makes."""

    root: str
    """A folder, or a URI such as s3://bucket/study."""


class StudyConfig(Section):
    """A study. Its file spells out every field that shapes numbers; `compute` and `report` have defaults."""

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
    report: ReportConfig = ReportConfig()
    compute: ComputeConfig = ComputeConfig()
    store: StoreConfig

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        refuse_sections_that_do_not_fit(self)
        return self
