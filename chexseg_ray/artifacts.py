"""Step, fingerprint, Record and Store: what an artefact is, where it lives, and when it counts as complete.

A step is addressed by the sha256 of canonical JSON of {name, version, config, input fingerprints}. An attempt writes its
files under `{root}/{name}/{fingerprint}/{attempt}/`; `record.json`, written last, lists them and makes the step built.
"""

import hashlib
import io
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from chexseg_ray.errors import InputError, TransientError

_FLAT = ("s3", "gcs", "abfs")  # object stores: a key needs no folder
_THREADS_PAY = 1_000_000  # bytes of a Parquet file; below, handing columns to threads costs 2 ms and gains nothing
_CHUNK = 4_000_000  # bytes of a file that are written at once
_READERS = 32  # requests at once to an object store; a record takes some 30 ms there, 0.1 ms on a disk

T = TypeVar("T")
R = TypeVar("R")
Json = Any  # None | bool | int | float | str | list | dict, as canonical_json accepts


def canonical_json(value: Json) -> str:
    """The one stable JSON form of a value: sorted keys, no blanks. Raises TypeError on what has none (NaN, sets, objects)."""
    _check_stable(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _check_stable(value: Json, where: str) -> None:
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
                raise TypeError(f"{where}: key {key!r} is no string")
            _check_stable(item, f"{where}.{key}")
        return
    raise TypeError(f"{where}: {type(value).__name__} has no canonical JSON form")


@dataclass(frozen=True)
class Step:
    """One artefact to be: a name, the version of its algorithm, the config that shapes its numbers, its input steps."""

    name: str
    version: int
    config: Mapping[str, Json]
    inputs: Mapping[str, "Step"] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """12 hex digits of sha256 over {name, version, config, input fingerprints}."""
        identity = {
            "name": self.name,
            "version": self.version,
            "config": dict(self.config),
            "inputs": {role: step.fingerprint for role, step in self.inputs.items()},
        }
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:12]

    @cached_property
    def address(self) -> str:
        return f"{self.name}/{self.fingerprint}"

    def ancestors(self) -> Iterator["Step"]:
        """Every step that this one is made from, inputs first, each once."""
        return iter(self._ancestors)

    @cached_property
    def _ancestors(self) -> tuple["Step", ...]:
        found: dict[str, Step] = {}
        for child in self.inputs.values():
            for step in (*child.ancestors(), child):
                found.setdefault(step.address, step)
        return tuple(found.values())


@dataclass(frozen=True)
class FileEntry:
    """A file of an attempt: path below the attempt, size in bytes, sha256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """What a built step says of itself; the only thing readers trust."""

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
        return f"{self.name}/{self.fingerprint}"

    def paths(self, prefix: str = "") -> list[str]:
        """The record's file paths that begin with a prefix, sorted."""
        return sorted(f.path for f in self.files if f.path.startswith(prefix))

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Record":
        """Parse; refuse with ValueError what names a file outside its attempt."""
        raw = json.loads(data)
        record = cls(**{**raw, "files": tuple(FileEntry(**f) for f in raw["files"])})
        for path in (record.attempt, *(entry.path for entry in record.files)):
            if any(part in ("", ".", "..") for part in path.split("/")):
                raise ValueError(f"{path!r} is no path below an attempt")
        return record


@dataclass(frozen=True)
class Attempt:
    """One try at a step: where it may write. Picklable, so that workers write beside the driver."""

    store: "Store"
    address: str
    name: str

    def write(self, path: str, data: bytes) -> FileEntry:
        """Put one file whole; the entry goes into the record."""
        self.store.put(f"{self.address}/{self.name}/{path}", data)
        return FileEntry(path, len(data), hashlib.sha256(data).hexdigest())

    def write_table(self, path: str, table: pa.Table) -> FileEntry:
        """Put one Parquet file whole."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        return self.write(path, sink.getvalue().to_pybytes())


class Store:
    """Artefacts below one root: a local folder or any pyarrow.fs URI."""

    def __init__(self, filesystem: pafs.FileSystem, base: str, root: str) -> None:
        self._fs = filesystem
        self._base = base.rstrip("/")
        self.root = root

    @classmethod
    def open(cls, root: str, name: str = "store.root") -> "Store":
        """Open a store root; nothing is created until the first write.

        Args:
            root: folder or URI.
            name: what the user calls it, for messages.

        Raises:
            InputError: the URI has a scheme that pyarrow cannot serve, or the root is, or lies below, what is no folder.
        """
        filesystem, base = open_filesystem(root, name)
        store = cls(filesystem, base, root if "://" in root else base)
        if store.is_local and not os.path.isdir(store.nearest()):
            raise InputError(f"{name}={root}: {store.nearest()} is a file: name a folder")
        return store

    def nearest(self) -> str:
        """A local root, or the nearest that there is of what it lies below."""
        return next(str(path) for path in (Path(self._base or "/"), *Path(self._base).parents) if os.path.lexists(path))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Store, (self._fs, self._base, self.root))

    @property
    def is_local(self) -> bool:
        return isinstance(self._fs, pafs.LocalFileSystem)

    @property
    def filesystem(self) -> pafs.FileSystem:
        return self._fs

    def path(self, relative: str) -> str:
        """The full path of a file below the root, in the store's own filesystem."""
        return f"{self._base}/{relative}"

    def shown(self, relative: str) -> str:
        """Where a file is, for people: a path, or a URI without its options."""
        scheme = self.root.partition("://")[0] + "://" if "://" in self.root and not self.is_local else ""
        return f"{scheme}{self.path(relative)}"

    def put(self, relative: str, data: bytes) -> None:
        """Write a file whole or not at all: temporary file, fsync and rename on a local root, one put elsewhere."""
        self.put_stream(relative, io.BytesIO(data))

    def put_stream(self, relative: str, source: IO[bytes]) -> None:
        """As put(), a piece at a time; `source` is at its start and complete, for what an object store was sent is there."""
        target = self.path(relative)
        with storage("written", target):
            if self._fs.type_name not in _FLAT:
                self._fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
            if self.is_local:
                temporary = Path(f"{target}.{uuid.uuid4().hex[:8]}.tmp")
                with temporary.open("wb") as stream:
                    shutil.copyfileobj(source, stream, _CHUNK)
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.replace(target)
                return
            with self._fs.open_output_stream(target) as stream:
                shutil.copyfileobj(source, stream, _CHUNK)

    def get(self, relative: str) -> bytes:
        """Read a file whole. Raises FileNotFoundError when it is not there, TransientError when the store does not answer."""
        with storage("read", self.path(relative)), self._fs.open_input_file(self.path(relative)) as stream:
            data: bytes = stream.read()
        return data

    def exists(self, relative: str) -> bool:
        """Whether there is such a file."""
        with storage("read", self.path(relative)):
            return bool(self._fs.get_file_info(self.path(relative)).type == pafs.FileType.File)

    def delete(self, relative: str) -> None:
        """Remove a file or folder if it is there."""
        with storage("deleted", self.path(relative)):
            info = self._fs.get_file_info(self.path(relative))
            if info.type == pafs.FileType.File:
                self._fs.delete_file(info.path)
            elif info.type == pafs.FileType.Directory:
                self._fs.delete_dir(info.path)

    def names(self, relative: str) -> list[str]:
        """Base names of what lies directly below a folder, sorted; empty when there is no folder."""
        selector = pafs.FileSelector(self.path(relative), allow_not_found=True)
        with storage("listed", self.path(relative)):
            return sorted(info.base_name for info in self._fs.get_file_info(selector))

    def find(self, step: Step) -> Record | None:
        """The record of a built step, or None. A record that does not parse is absent."""
        return self.find_address(step.address)

    def find_address(self, address: str) -> Record | None:
        """The record at {name}/{fingerprint}, or None; what is there but is not this address's record is None too."""
        try:
            record = Record.from_json(self.get(f"{address}/record.json"))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return record if record.address == address else None

    def records(self, name: str, most: int | None = None) -> list[Record]:
        """All built steps of one name, or `most` of them."""
        return list(self._find_all(f"{name}/{fingerprint}" for fingerprint in self.names(name)[:most]).values())

    def find_all(self, steps: Iterable[Step]) -> dict[str, Record]:
        """The records of the built ones of many steps, by address: a listing for each name, then the records that may be there, side by side."""
        by_name: dict[str, set[str]] = {}
        for step in steps:
            by_name.setdefault(step.name, set()).add(step.fingerprint)
        return self._find_all(f"{name}/{own}" for name, wanted in by_name.items() for own in sorted(wanted.intersection(self.names(name))))

    def _find_all(self, addresses: Iterable[str]) -> dict[str, Record]:
        return {record.address: record for record in self.side_by_side(self.find_address, addresses) if record is not None}

    def side_by_side(self, work: Callable[[T], R], items: Iterable[T]) -> Iterable[R]:
        """`work` on each item, in order: many requests at once to an object store, one after another on a disk, where threads only cost."""
        if self.is_local:
            return map(work, items)
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(work, items))

    def new_attempt(self, step: Step) -> Attempt:
        return Attempt(self, step.address, uuid.uuid4().hex[:8])

    def commit(self, record: Record) -> None:
        """Make a step built: its record is written last. Its training state is no longer needed and goes."""
        self.put(f"{record.address}/record.json", record.to_json())
        self.delete(f"{record.address}/state")
        self.delete(f"{record.address}/failed.json")

    def read(self, record: Record, path: str) -> bytes:
        """One file that the record lists.

        Raises:
            InputError: the record does not list it, it is gone, or its bytes are not the record's.
        """
        with storage("read", self.path(record.address)), self._open(record, path) as stream:
            data: bytes = stream.read()
        if hashlib.sha256(data).hexdigest() not in {f.sha256 for f in record.files if f.path == path}:
            where = self.path(f"{record.address}/{record.attempt}/{path}")
            raise InputError(f"{where}: its bytes are not those that the record lists: delete {record.address} and run again")
        return data

    def _open(self, record: Record, path: str) -> Any:
        """A listed file for reading in ranges; errors as read()."""
        entry = next((f for f in record.files if f.path == path), None)
        if entry is None:
            raise InputError(f"{record.address}: the record lists no {path}: delete its folder and run again")
        where = self.path(f"{record.address}/{record.attempt}/{path}")
        try:
            stream = self._fs.open_input_file(where)
        except FileNotFoundError:
            raise InputError(f"{where}: is gone, though the record lists it: delete {record.address} and run again") from None
        if stream.size() != entry.size:
            raise InputError(f"{where}: {stream.size()} bytes, the record says {entry.size}: delete {record.address} and run again")
        return stream

    def read_table(self, record: Record, path: str, columns: list[str] | None = None) -> pa.Table:
        """One Parquet file that the record lists; of the file only the bytes of the columns are read."""
        with storage("read", self.path(record.address)), self._open(record, path) as stream:
            return pq.ParquetFile(stream).read(columns=columns, use_threads=stream.size() > _THREADS_PAY)

    def read_tables(self, record: Record, prefix: str, columns: list[str] | None = None) -> pa.Table:
        """All Parquet parts whose path begins with a prefix, in order.

        Raises:
            InputError: there is no such part.
        """
        paths = record.paths(prefix)
        if not paths:
            raise InputError(f"{record.address}: the record lists no {prefix}*: delete its folder and run again")
        return pa.concat_tables([self.read_table(record, path, columns) for path in paths])


@contextmanager
def storage(done: str, where: str) -> Iterator[None]:
    """What is definitely not there stays FileNotFoundError; everything else that storage says is transient."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise
    except OSError as error:
        said = " ".join(str(error).split())[:300]
        raise TransientError(f"{where}: cannot be {done} ({said}): check the store, its space and its credentials, then run again") from error


def open_filesystem(root: str, field_name: str) -> tuple[pafs.FileSystem, str]:
    """A pyarrow filesystem and the base path in it, for a folder or a URI."""
    scheme, _, rest = root.partition("://")
    if rest and "@" in rest.partition("?")[0] and not scheme.startswith("abfs"):  # abfs://container@account is no secret
        raise InputError(f"{field_name}: a URI with a name or password before its bucket ends in logs: use the environment or the machine's role")
    if "://" not in root:
        return pafs.LocalFileSystem(), str(Path(root).expanduser().resolve())
    try:
        with storage("reached", root):
            filesystem, base = pafs.FileSystem.from_uri(root)
    except (pa.ArrowInvalid, FileNotFoundError, NotImplementedError) as error:
        raise InputError(f"{field_name}={root}: pyarrow cannot open it ({error}): name a folder or an s3://, gs://, file:// URI") from None
    return filesystem, str(base)


def differing_fields(step: Step, records: Iterable[Record]) -> tuple[str, list[str]] | None:
    """Why a step is not built: the nearest record's fingerprint and the fields that differ from it, or None without records."""
    best: tuple[str, list[str]] | None = None
    for record in records:
        fields = [k for k in sorted({*step.config, *record.config}) if step.config.get(k, ...) != record.config.get(k, ...)]
        inputs = {role: child.fingerprint for role, child in step.inputs.items()}
        fields += [f"input {k}" for k in sorted({*inputs, *record.inputs}) if inputs.get(k) != record.inputs.get(k)]
        if step.version != record.version:
            fields.insert(0, f"version {record.version} -> {step.version}")
        if best is None or len(fields) < len(best[1]):
            best = (record.fingerprint, fields)
    return best
