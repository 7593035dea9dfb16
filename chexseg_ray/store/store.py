"""Store and Attempt: where artefacts are kept, how they are checked on reading, and when a step counts as built.

An attempt writes its files to `{root}/{name}/{fingerprint}/{attempt}/`. `record.json` in the folder above lists them;
it is written last, and its existence means that the step is built. Readers open only what a record lists, so files
that a killed or forgotten process leaves behind change nothing.
"""

import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from chexseg_ray.errors import InputError
from chexseg_ray.store.filesystem import open_filesystem, storage
from chexseg_ray.store.step import FileEntry, Record, Step

_OBJECT_STORES = ("s3", "gcs", "abfs")  # a key needs no folder
_MIN_BYTES_FOR_THREADS = 1_000_000  # smaller Parquet files gain nothing by threads, which cost 2 ms
_CHUNK_BYTES = 4_000_000  # of a file that are written at once
_PARALLEL_REQUESTS = 32  # to an object store, where a record takes some 30 ms; 0.1 ms on a disk

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Attempt:
    """One try at building a step, with a folder of its own. Picklable, so that workers can write too.

    Args:
        store: where the folder is.
        address: of the step.
        name: of the folder below the address.
    """

    store: "Store"
    address: str
    name: str

    def write(self, path: str, data: bytes) -> FileEntry:
        """Write one file whole or not at all.

        Args:
            path: relative to the attempt's folder.
            data: the file's bytes.

        Returns:
            The file's entry for the record.

        Raises:
            TransientError: the storage refuses or does not answer.
        """
        self.store.put(f"{self.address}/{self.name}/{path}", data)
        return FileEntry(path, len(data), hashlib.sha256(data).hexdigest())

    def write_table(self, path: str, table: pa.Table) -> FileEntry:
        """Write `table` as one Parquet file (zstd) at `path`; path, return value and errors are as in write()."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        return self.write(path, sink.getvalue().to_pybytes())


class Store:
    """Artefacts below one root: a local folder or any pyarrow.fs URI."""

    def __init__(self, filesystem: pafs.FileSystem, base: str, root: str) -> None:
        """Use an opened filesystem.

        Args:
            filesystem: of pyarrow.
            base: path of the root in it.
            root: the folder or URI, as the user named it.
        """
        self._fs = filesystem
        self._base = base.rstrip("/")
        self.root = root

    @classmethod
    def open(cls, root: str, name: str = "store.root") -> "Store":
        """Open a store; nothing is created until the first write.

        Args:
            root: folder or URI.
            name: what the user calls it, for messages.

        Raises:
            InputError: pyarrow cannot open the URI, it contains a password, or the root is or lies below a file.
            TransientError: the storage does not answer.
        """
        filesystem, base = open_filesystem(root, name)
        store = cls(filesystem, base, root if "://" in root else base)
        if store.is_local and not os.path.isdir(store.nearest()):
            raise InputError(f"{name}={root}: {store.nearest()} is a file: name a folder")
        return store

    def nearest(self) -> str:
        """The path of a local root, or of the nearest folder or file above it that exists."""
        candidates = (Path(self._base or "/"), *Path(self._base).parents)
        return next(str(path) for path in candidates if os.path.lexists(path))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Store, (self._fs, self._base, self.root))

    @property
    def is_local(self) -> bool:
        """Whether the root is a path of the operating system (a network mount is one), not an object store."""
        return isinstance(self._fs, pafs.LocalFileSystem)

    @property
    def filesystem(self) -> pafs.FileSystem:
        """The pyarrow filesystem that path() refers to."""
        return self._fs

    def path(self, relative: str) -> str:
        """Return the full path of the file `relative` below the root, in the store's own filesystem."""
        return f"{self._base}/{relative}"

    def shown(self, relative: str) -> str:
        """Return for people where the file `relative` below the root is: a path, or a URI without its options."""
        scheme = ""
        if "://" in self.root and not self.is_local:
            scheme = self.root.partition("://")[0] + "://"
        return f"{scheme}{self.path(relative)}"

    def put(self, relative: str, data: bytes) -> None:
        """Write a file whole or not at all.

        A local root gets a temporary file, fsync and rename; an object store one upload.

        Args:
            relative: path below the root.
            data: the file's bytes.

        Raises:
            TransientError: the storage refuses or does not answer.
        """
        self.put_stream(relative, io.BytesIO(data))

    def put_stream(self, relative: str, source: IO[bytes]) -> None:
        """Write a file as put() does, without holding it in memory.

        Args:
            relative: path below the root.
            source: the complete file, at its start. If reading it failed, an object store would keep the part that was
                sent.

        Raises:
            TransientError: the storage refuses or does not answer.
        """
        target = self.path(relative)
        with storage("written", target):
            if self._fs.type_name not in _OBJECT_STORES:
                self._fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
            if self.is_local:
                temporary = Path(f"{target}.{uuid.uuid4().hex[:8]}.tmp")
                with temporary.open("wb") as stream:
                    shutil.copyfileobj(source, stream, _CHUNK_BYTES)
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.replace(target)
                return
            with self._fs.open_output_stream(target) as stream:
                shutil.copyfileobj(source, stream, _CHUNK_BYTES)

    def get(self, relative: str) -> bytes:
        """Read a file whole.

        Args:
            relative: path below the root.

        Raises:
            FileNotFoundError: there is no such file.
            TransientError: the storage refuses or does not answer.
        """
        with storage("read", self.path(relative)), self._fs.open_input_file(self.path(relative)) as stream:
            data: bytes = stream.read()
        return data

    def exists(self, relative: str) -> bool:
        """Return whether `relative` is a file below the root; a folder does not count.

        Raises:
            TransientError: the storage refuses or does not answer.
        """
        with storage("read", self.path(relative)):
            return bool(self._fs.get_file_info(self.path(relative)).type == pafs.FileType.File)

    def delete(self, relative: str) -> None:
        """Remove the file or folder `relative` below the root, if it is there.

        Raises:
            TransientError: the storage refuses or does not answer.
        """
        with storage("deleted", self.path(relative)):
            info = self._fs.get_file_info(self.path(relative))
            if info.type == pafs.FileType.File:
                self._fs.delete_file(info.path)
            elif info.type == pafs.FileType.Directory:
                self._fs.delete_dir(info.path)

    def names(self, relative: str) -> list[str]:
        """List the names of files and folders directly below the folder `relative`, sorted; none if it does not exist.

        Raises:
            TransientError: the storage refuses or does not answer.
        """
        selector = pafs.FileSelector(self.path(relative), allow_not_found=True)
        with storage("listed", self.path(relative)):
            return sorted(info.base_name for info in self._fs.get_file_info(selector))

    def find(self, step: Step) -> Record | None:
        """Return the record of a built `step`, or None; errors are as in find_address()."""
        return self.find_address(step.address)

    def find_address(self, address: str) -> Record | None:
        """Read the record at an address.

        Args:
            address: `{name}/{fingerprint}`.

        Returns:
            None if there is no record, if it does not parse, or if it is another address's record.

        Raises:
            TransientError: the storage refuses or does not answer.
        """
        try:
            record = Record.from_json(self.get(f"{address}/record.json"))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        return record if record.address == address else None

    def records(self, name: str, most: int | None = None) -> list[Record]:
        """Read the records of the built steps of one name, sorted by fingerprint.

        Args:
            name: of the steps.
            most: how many fingerprints to look at; None for all.
        """
        addresses = [f"{name}/{fingerprint}" for fingerprint in self.names(name)[:most]]
        return list(self._find_all(addresses).values())

    def find_all(self, steps: Iterable[Step]) -> dict[str, Record]:
        """Find the records of those of many steps that are built, {address: record}.

        It lists the folder of each name once, so that no request is spent on a step without a folder.
        """
        by_name: dict[str, set[str]] = {}
        for step in steps:
            by_name.setdefault(step.name, set()).add(step.fingerprint)
        addresses = []
        for name, fingerprints in by_name.items():
            begun = fingerprints.intersection(self.names(name))
            addresses += [f"{name}/{fingerprint}" for fingerprint in sorted(begun)]
        return self._find_all(addresses)

    def _find_all(self, addresses: Iterable[str]) -> dict[str, Record]:
        """Read the records at many addresses, {address: record}; addresses without a record are left out."""
        records = self.side_by_side(self.find_address, addresses)
        return {record.address: record for record in records if record is not None}

    def side_by_side(self, work: Callable[[T], R], items: Iterable[T]) -> Iterable[R]:
        """Call a function on each item.

        An object store gets many calls at once. On a disk, where threads gain nothing, each call is made when its
        result is asked for.

        Args:
            work: the function.
            items: its arguments.

        Returns:
            The results in the order of the items.
        """
        if self.is_local:
            return map(work, items)
        with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
            return list(pool.map(work, items))

    def new_attempt(self, step: Step) -> Attempt:
        """Name a new attempt at `step`; nothing is written yet."""
        return Attempt(self, step.address, uuid.uuid4().hex[:8])

    def commit(self, record: Record) -> None:
        """Write a step's record, which makes it built; then delete its training state and failed.json, if any.

        Args:
            record: lists files that are all written.

        Raises:
            TransientError: the storage refuses or does not answer.
        """
        self.put(f"{record.address}/record.json", record.to_json())
        self.delete(f"{record.address}/state")
        self.delete(f"{record.address}/failed.json")

    def read(self, record: Record, path: str) -> bytes:
        """Read one file that a record lists, and check its bytes.

        Args:
            record: of a built step.
            path: relative to the attempt's folder.

        Raises:
            InputError: the record does not list the file, the file is gone, or its bytes are not those of the record.
            TransientError: the storage refuses or does not answer.
        """
        with storage("read", self.path(record.address)), self._open_listed(record, path) as stream:
            data: bytes = stream.read()
        if hashlib.sha256(data).hexdigest() not in {entry.sha256 for entry in record.files if entry.path == path}:
            where = self.path(f"{record.address}/{record.attempt}/{path}")
            raise InputError(
                f"{where}: its bytes are not those that the record lists: delete {record.address} and run again"
            )
        return data

    def _open_listed(self, record: Record, path: str) -> Any:
        """Open a file that the record lists and check its size. Arguments and errors as in read()."""
        entry = next((entry for entry in record.files if entry.path == path), None)
        if entry is None:
            raise InputError(f"{record.address}: the record lists no {path}: delete its folder and run again")
        where = self.path(f"{record.address}/{record.attempt}/{path}")
        try:
            stream = self._fs.open_input_file(where)
        except FileNotFoundError:
            raise InputError(
                f"{where}: the file is gone, though the record lists it: delete {record.address} and run again"
            ) from None
        if stream.size() != entry.size:
            raise InputError(
                f"{where}: {stream.size()} bytes, the record lists {entry.size}: delete {record.address} and run again"
            )
        return stream

    def read_table(self, record: Record, path: str, columns: list[str] | None = None) -> pa.Table:
        """Read one Parquet file that a record lists. Only its size is checked.

        Args:
            record: of a built step.
            path: relative to the attempt's folder.
            columns: which to read; None for all. The bytes of others are not read.

        Raises:
            InputError: the record does not list the file, the file is gone, or its size is not that of the record.
            TransientError: the storage refuses or does not answer.
        """
        with storage("read", self.path(record.address)), self._open_listed(record, path) as stream:
            use_threads = stream.size() > _MIN_BYTES_FOR_THREADS
            return pq.ParquetFile(stream).read(columns=columns, use_threads=use_threads)

    def read_tables(self, record: Record, prefix: str, columns: list[str] | None = None) -> pa.Table:
        """Read all listed Parquet files whose path begins with a prefix as one table, in the order of their paths.

        Args:
            record: of a built step.
            prefix: of the paths.
            columns: which to read; None for all.

        Raises:
            InputError: the record lists no such file; otherwise as read_table().
            TransientError: the storage refuses or does not answer.
        """
        paths = record.paths(prefix)
        if not paths:
            raise InputError(f"{record.address}: the record lists no {prefix}*: delete its folder and run again")
        return pa.concat_tables([self.read_table(record, path, columns) for path in paths])
