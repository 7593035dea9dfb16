"""How a step is run: where the sources are, what each task may ask for. Nothing here shapes a number."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.fs as pafs

from chexseg_ray.artifacts import Attempt, FileEntry, Record, Step, Store, storage


@dataclass(frozen=True)
class ActorResources:
    num_cpus: float
    num_gpus: float
    min_actors: int
    max_actors: int


@dataclass(frozen=True)
class TrainResources:
    num_workers: int
    num_cpus: float
    num_gpus: float
    threads: int


@dataclass(frozen=True)
class Source:
    """A data root opened for reading. Picklable."""

    filesystem: pafs.FileSystem
    base: str

    def open(self, path: str) -> Any:
        """A stream of a file below the root.

        Raises:
            FileNotFoundError: there is no such file; a folder is none.
            TransientError: the storage refuses or does not answer.
        """
        where = f"{self.base}/{path}"
        with storage("read", where):
            try:
                return self.filesystem.open_input_file(where)
            except NotADirectoryError:
                raise FileNotFoundError(where) from None
            except OSError:
                if self.filesystem.get_file_info(where).type != pafs.FileType.File:
                    raise FileNotFoundError(where) from None
                raise

    def read(self, path: str) -> bytes:
        """A file's bytes; errors as open()."""
        with storage("read", f"{self.base}/{path}"), self.open(path) as stream:
            data: bytes = stream.read()
        return data


@dataclass(frozen=True)
class Execution:
    """Handed to every stage.

    `files` maps the source fields of the config's `data` section to paths below the data root; `source` is None for the
    phantom, whose files lie in the store. `encoder_files` are the paths or URIs of the files of encoder weights; `download`
    says whether ImageNet weights that are not on this machine may be fetched. `shared` holds rows that a sweep has put into Ray's
    object store, by address. `label` names the sweep point that is trained.
    """

    source: Source | None
    files: Mapping[str, str | None]
    encoder_files: tuple[str, ...]
    download: bool
    max_reject_fraction: float
    allow_expert_rejects: bool
    images_cpus: float
    pseudo_masks_cpus: float
    cams: ActorResources
    classifier: TrainResources
    moco: TrainResources
    irnet: TrainResources
    propagation: ActorResources
    segmentation: TrainResources
    state_seconds: float
    max_failures: int
    start_ray: Callable[[], None] = lambda: None
    shared: Mapping[str, Any] = field(default_factory=dict)
    report: Callable[[dict[str, Any]], None] | None = None
    label: str = ""


@dataclass(frozen=True)
class Task:
    """One step to make: what it is, the records of its inputs, where to write."""

    step: Step
    inputs: Mapping[str, Record]
    attempt: Attempt
    execution: Execution

    @property
    def store(self) -> Store:
        return self.attempt.store

    def open_source(self) -> Source:
        """The user's data root, or the phantom's folder in the store."""
        if self.execution.source is not None:
            return self.execution.source
        phantom = next(step for step in self.step.ancestors() if step.name == "phantom")
        record = self.record_of(phantom.address)
        return Source(self.store.filesystem, self.store.path(f"{record.address}/{record.attempt}"))

    def record_of(self, address: str) -> Record:
        """The record of an ancestor by its address."""
        record = self.store.find_address(address)
        assert record is not None, address
        return record


@dataclass(frozen=True)
class Made:
    """What a stage made: files of the attempt, and what the record says of them."""

    files: list[FileEntry]
    rows: int
    rejects: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
