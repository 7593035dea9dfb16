"""How a step is run: where its sources are, what its tasks ask for, where it writes. Nothing here shapes a number."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from chexseg_ray.config.resources import ComputeConfig
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.engine.source_tables import SourceTables
from chexseg_ray.store.filesystem import Source
from chexseg_ray.store.step import FileEntry, Record, Step
from chexseg_ray.store.store import Attempt, Store
from chexseg_ray.study.sources import encoder_files, source_files


def no_ray_to_start() -> None:
    """Do nothing: Ray runs already, or the step needs none. (A named function, so that it pickles.)"""


@dataclass(frozen=True)
class Execution:
    """What every stage is handed beside its step: where the sources are, and what it may ask Ray for.

    Args:
        source: the user's data root; None for the phantom, whose files lie in the store.
        files: paths below the data root by field of the config's `data` section.
        encoder_files: paths or URIs of the files of encoder weights.
        download: whether ImageNet weights that are not on this machine may be fetched.
        max_reject_fraction: share of a split's images, in [0, 1], that may be unusable.
        allow_expert_rejects: whether expert, validation or test images may be unusable.
        compute: what each stage asks Ray for.
        tables: the CSV and mask files that were parsed so far.
        start_ray: called before the first use of Ray.
        shared: rows that a sweep has put into Ray's object store, by address.
        report: called, in a trial, with the metrics of a training while it runs.
        label: names the sweep point that is trained; empty outside the sweep.
    """

    source: Source | None
    files: Mapping[str, str | None]
    encoder_files: tuple[str, ...]
    download: bool
    max_reject_fraction: float
    allow_expert_rejects: bool
    compute: ComputeConfig
    tables: SourceTables = field(default_factory=SourceTables)
    start_ray: Callable[[], None] = no_ray_to_start
    shared: Mapping[str, Any] = field(default_factory=dict)
    report: Callable[[dict[str, Any]], None] | None = None
    label: str = ""


def make_execution(config: StudyConfig, source: Source | None, start_ray: Callable[[], None]) -> Execution:
    """Take from a study's config how its steps are run.

    Args:
        config: the study's config.
        source: its opened data root; None for the phantom.
        start_ray: starts or joins Ray once.
    """
    return Execution(
        source=source,
        files=source_files(config),
        encoder_files=tuple(encoder_files(config)),
        download=config.pretraining.download,
        max_reject_fraction=config.data.max_reject_fraction,
        allow_expert_rejects=config.data.allow_expert_rejects,
        compute=config.compute,
        start_ray=start_ray,
    )


@dataclass(frozen=True)
class Task:
    """One step to make.

    Args:
        step: what it is.
        inputs: the records of its inputs by role.
        attempt: where it writes.
        execution: how it runs.
    """

    step: Step
    inputs: Mapping[str, Record]
    attempt: Attempt
    execution: Execution

    @property
    def store(self) -> Store:
        """The store that the step is made in."""
        return self.attempt.store

    def open_source(self) -> Source:
        """The user's data root, or the phantom's folder in the store."""
        if self.execution.source is not None:
            return self.execution.source
        phantom = next(step for step in self.step.ancestors() if step.name == "phantom")
        return self.store.source_of(self.record_of(phantom.address))

    def record_of(self, address: str) -> Record:
        """The record of an ancestor of the step.

        Args:
            address: the ancestor's address.
        """
        record = self.store.find_address(address)
        assert record is not None, address
        return record


@dataclass(frozen=True)
class Made:
    """What a stage made: the files of its attempt, and what its record keeps about them.

    Args:
        files: entries of all files that were written.
        rows: number of rows of its table, or of images that a training used.
        rejects: number of images that could not be used.
        metrics: for the record; plain JSON values, which must be equal when a step is made again.
        run: for the record; circumstances that may differ from run to run.
    """

    files: list[FileEntry]
    rows: int
    rejects: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
