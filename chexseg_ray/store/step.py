"""Step and Record: what an artefact is made from, its fingerprint, and what its record holds once it is built.

A step's address is its name and a fingerprint, the sha256 of canonical JSON of {name, version, config, input
fingerprints}: everything that shapes its numbers, and nothing else.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

_CHECKSUM = "sha256"  # in a record's run
_MOST = 2**63  # of rows, rejects and bytes
_FINGERPRINT = re.compile("[0-9a-f]{12}")
_TYPES: dict[str, type] = {
    "name": str,
    "version": int,
    "fingerprint": str,
    "config": dict,
    "inputs": dict,
    "attempt": str,
    "files": list,
    "rows": int,
    "rejects": int,
    "metrics": dict,
    "run": dict,
}  # of the fields of a record.json

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


def _fingerprint(name: str, version: int, config: Mapping[str, Json], inputs: Mapping[str, str]) -> str:
    """The first 12 hex digits of the sha256 of {name, version, config, input fingerprints}."""
    identity = {"name": name, "version": version, "config": dict(config), "inputs": dict(inputs)}
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]


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
        inputs = {role: step.fingerprint for role, step in self.inputs.items()}
        return _fingerprint(self.name, self.version, self.config, inputs)

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

    @cached_property
    def entries(self) -> Mapping[str, FileEntry]:
        """The entries of `files` by path."""
        return {entry.path: entry for entry in self.files}

    def paths(self, prefix: str = "") -> list[str]:
        """List the record's file paths that begin with `prefix`, sorted."""
        return sorted(entry.path for entry in self.files if entry.path.startswith(prefix))

    def to_json(self) -> bytes:
        """Write the bytes of record.json, with sorted keys. `run.sha256` in it is the hash of all other content."""
        content = json.loads(json.dumps(asdict(self), allow_nan=False))  # as it will be parsed
        content["run"] = {**content["run"], _CHECKSUM: _checksum(content)}
        return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Record":
        """Parse a record, and compare its content with its hash, if it has one (records of old versions have none).

        Args:
            data: the bytes of record.json.

        Raises:
            ValueError: the bytes are not JSON of a record's form, or not what was written.
        """
        try:
            content = json.loads(data)
            _check_form(content)
            written = content["run"].pop(_CHECKSUM, None)
            if written not in (None, _checksum(content)):
                raise ValueError("its hash is not that of its content")
            identity = (content["name"], content["version"], content["config"], content["inputs"])
            if _fingerprint(*identity) != content["fingerprint"]:
                raise ValueError("its fingerprint is not that of its config")
            return cls(**{**content, "files": tuple(FileEntry(**entry) for entry in content["files"])})
        except (TypeError, RecursionError) as error:
            raise ValueError(f"not a record ({error})") from None


def _check_form(content: Json) -> None:
    """Raise ValueError if parsed JSON does not have the fields and types of a record."""
    _check_types(content, _TYPES, "record")
    _check_types(content["inputs"], dict.fromkeys(content["inputs"], str), "inputs")
    for entry in content["files"]:
        _check_types(entry, {"path": str, "size": int, "sha256": str}, "files")
    paths = [entry["path"] for entry in content["files"]]
    for path in (content["attempt"], *paths):
        if any(part in ("", ".", "..") for part in path.split("/")) or not path.isprintable():
            raise ValueError(f"{path!r} is not a path below an attempt")
    if len(set(paths)) < len(paths):
        raise ValueError("a file is listed twice")
    if not all(_FINGERPRINT.fullmatch(text) for text in (content["fingerprint"], *content["inputs"].values())):
        raise ValueError("a fingerprint is not 12 hex digits")
    numbers = (content["rows"], content["rejects"], *(entry["size"] for entry in content["files"]))
    if not all(0 <= number < _MOST for number in numbers):
        raise ValueError("a number is negative or too large")


def _check_types(content: Json, types: Mapping[str, type], where: str) -> None:
    """Raise ValueError unless parsed JSON is an object with exactly these keys and types of values."""
    if type(content) is not dict or content.keys() != types.keys():
        raise ValueError(f"{where} does not have the fields {sorted(types)}")
    for key, kind in types.items():
        if type(content[key]) is not kind:
            raise ValueError(f"{where}.{key} is no {kind.__name__}")


def _checksum(content: Mapping[str, Json]) -> str:
    """The sha256 of a record's content, without the checksum itself."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


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
