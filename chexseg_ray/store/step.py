"""Step and Record: what an artefact is made from, its fingerprint, and what its record holds once it is built.

A step's address is its name and a fingerprint, the sha256 of canonical JSON of {name, version, config, input
fingerprints}: everything that shapes its numbers, and nothing else.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

Json = Any  # None | bool | int | float | str | list | tuple | dict, as canonical_json accepts


def canonical_json(value: Json) -> str:
    """Write a value in its one stable JSON form: sorted keys, no blanks, ASCII.

    Args:
        value: nested None, bool, int, finite float, str, list, tuple, or dict with str keys.

    Raises:
        TypeError: a part of the value has no such form (NaN, a set, an object); the message names the part.
    """
    _check_stable(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _check_stable(value: Json, where: str) -> None:
    """Raise TypeError if a part of the value has no canonical form; `where` is the path to it, for the message."""
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{where}: {value} has no canonical JSON form")
    if value is None or isinstance(value, bool | int | float | str):
        return
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_stable(item, f"{where}[{i}]")
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is not a string")
            _check_stable(item, f"{where}.{key}")
        return
    raise TypeError(f"{where}: {type(value).__name__} has no canonical JSON form")


@dataclass(frozen=True)
class Step:
    """An artefact, built or not.

    Args:
        name: of its kind, such as `classifier`.
        version: of its algorithm.
        config: everything that shapes its numbers.
        inputs: {role: step} of the artefacts that it is made from.
    """

    name: str
    version: int
    config: Mapping[str, Json]
    inputs: Mapping[str, "Step"] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """The first 12 hex digits of the sha256 of {name, version, config, input fingerprints}."""
        identity = {
            "name": self.name,
            "version": self.version,
            "config": dict(self.config),
            "inputs": {role: step.fingerprint for role, step in self.inputs.items()},
        }
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]

    @cached_property
    def address(self) -> str:
        """`{name}/{fingerprint}`, the step's folder below a store's root."""
        return f"{self.name}/{self.fingerprint}"

    def ancestors(self) -> Iterator["Step"]:
        """Iterate over every step that this one is made from, each once and after its own inputs."""
        return iter(self._ancestors)

    @cached_property
    def _ancestors(self) -> tuple["Step", ...]:
        """The steps of ancestors(), cached: a graph asks for them many times."""
        found: dict[str, Step] = {}
        for child in self.inputs.values():
            for step in (*child.ancestors(), child):
                found.setdefault(step.address, step)
        return tuple(found.values())


@dataclass(frozen=True)
class FileEntry:
    """A file of an attempt: path relative to the attempt's folder, size in bytes, sha256 in hex digits."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """The content of a built step's record.json, the only thing that readers trust.

    Args:
        name: as in Step.
        version: as in Step.
        fingerprint: of the step.
        config: as in Step.
        inputs: {role: fingerprint} of the artefacts that it was made from.
        attempt: name of the attempt that built the step.
        files: what the attempt wrote, by path.
        rows: number of rows of its table, or of images that a training used.
        rejects: number of images that could not be used.
        metrics: facts about the result, equal whenever the step is built again.
        run: circumstances of this build, which may differ from run to run.
    """

    name: str
    version: int
    fingerprint: str
    config: dict[str, Json]
    inputs: dict[str, str]
    attempt: str
    files: tuple[FileEntry, ...]
    rows: int
    rejects: int
    metrics: dict[str, Json]
    run: dict[str, Json]

    @property
    def address(self) -> str:
        """The address of the step, `{name}/{fingerprint}`."""
        return f"{self.name}/{self.fingerprint}"

    def paths(self, prefix: str = "") -> list[str]:
        """List the record's file paths that begin with `prefix`, sorted."""
        return sorted(entry.path for entry in self.files if entry.path.startswith(prefix))

    def to_json(self) -> bytes:
        """Write the bytes of record.json, with sorted keys."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Record":
        """Parse a record.

        Args:
            data: the bytes of record.json.

        Raises:
            ValueError: the bytes are not JSON, or a path leads out of the attempt's folder.
            TypeError, KeyError, AttributeError: the JSON does not have a record's form.
        """
        fields = json.loads(data)
        fields["files"] = tuple(FileEntry(**entry) for entry in fields["files"])
        record = cls(**fields)
        for path in (record.attempt, *(entry.path for entry in record.files)):
            if any(part in ("", ".", "..") for part in path.split("/")):
                raise ValueError(f"{path!r} is not a path below an attempt")
        return record


def differing_fields(step: Step, records: Iterable[Record]) -> tuple[str, list[str]] | None:
    """Explain why a step is not built, by the record that differs from it in the fewest fields.

    Args:
        step: the step that is not built.
        records: built steps of the same name.

    Returns:
        That record's fingerprint and the fields that differ: config keys, `input ROLE`, and `version A -> B` from
        record to step. None without records.
    """
    best: tuple[str, list[str]] | None = None
    for record in records:
        keys = sorted({*step.config, *record.config})
        fields = [key for key in keys if step.config.get(key, ...) != record.config.get(key, ...)]
        inputs = {role: child.fingerprint for role, child in step.inputs.items()}
        roles = sorted({*inputs, *record.inputs})
        fields += [f"input {role}" for role in roles if inputs.get(role) != record.inputs.get(role)]
        if step.version != record.version:
            fields.insert(0, f"version {record.version} -> {step.version}")
        if best is None or len(fields) < len(best[1]):
            best = (record.fingerprint, fields)
    return best
