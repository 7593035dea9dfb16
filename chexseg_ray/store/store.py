"""Store and Attempt: where artefacts are kept, how they are checked on reading, and when a step counts as built.

An attempt writes its files to `{root}/{name}/{fingerprint}/{attempt}/`. `record.json` in the folder above lists them;
it is written last, and its existence means that the step is built. Readers open only what a record lists, so files
that a killed or forgotten process leaves behind change nothing.
"""

import hashlib
import json
import traceback
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from chexseg_ray.errors import InputError
from chexseg_ray.store.files import Files
from chexseg_ray.store.filesystem import ABSENT, Source, storage
from chexseg_ray.store.step import FileEntry, Record, Step

_MIN_BYTES_FOR_THREADS = 1_000_000  # smaller Parquet files gain nothing by threads, which cost 2 ms

_COMPARED: set[tuple[str, str, str]] = set()  # (filesystem, path, sha256) of the files that this process has compared


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


class Store(Files):
    """Artefacts below one root: a local folder or any pyarrow.fs URI."""

    def find(self, step: Step) -> Record | None:
        """Return the record of a built `step`, or None; errors are as in find_address()."""
        return self.find_address(step.address)

    def find_address(self, address: str) -> Record | None:
        """Read the record at an address.

        Args:
            address: `{name}/{fingerprint}`.

        Returns:
            None if there is no record, if it is damaged, or if it is another address's record.

        Raises:
            TransientError: the storage refuses or does not answer.
        """
        try:
            record = Record.from_json(self.get(f"{address}/record.json"))
        except (*ABSENT, ValueError):
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

    def put_failure(self, step: Step, error: BaseException) -> None:
        """Write failed.json, which explains why a step is not built, into its folder; the next run tries it again.

        Args:
            step: the step.
            error: what ended the attempt, while it is handled: its traceback is written too.

        Raises:
            TransientError: the storage refuses or does not answer.
        """
        details = {"error": str(error), "kind": type(error).__name__, "traceback": traceback.format_exc()}
        self.put(f"{step.address}/failed.json", json.dumps(details, indent=1).encode())

    def failure(self, step: Step) -> str | None:
        """The error of the last attempt at a step, from its failed.json; None if there is no such file.

        Raises:
            TransientError: the storage refuses or does not answer.
        """
        try:
            return str(json.loads(self.get(f"{step.address}/failed.json"))["error"])
        except ABSENT:
            return None
        except (ValueError, TypeError, KeyError, RecursionError):
            return "its error cannot be read (failed.json is damaged)"

    def read(self, record: Record, path: str) -> bytes:
        """Read one file that a record lists, and compare its bytes with the record.

        Args:
            record: of a built step.
            path: relative to the attempt's folder.

        Raises:
            InputError: the record does not list the file, the file is gone, or its bytes are not those of the record.
            TransientError: the storage refuses or does not answer.
        """
        entry = self._entry(record, path)
        where = self.path(f"{record.address}/{record.attempt}/{path}")
        try:
            with storage("read", where), self._fs.open_input_file(where) as stream:
                size = stream.size()
                data: bytes = stream.read() if size == entry.size else b""
        except ABSENT:
            raise self._damaged(record, path, "the file is gone, though the record lists it") from None
        if size != entry.size:
            raise self._damaged(record, path, f"{size} bytes, the record lists {entry.size}")
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise self._damaged(record, path, "its bytes are not those that the record lists")
        _COMPARED.add((self._fs.type_name, where, entry.sha256))
        return data

    def read_table(self, record: Record, path: str, columns: list[str] | None = None) -> pa.Table:
        """Read one Parquet file that a record lists.

        The first call for a file in a process reads all of it and compares its bytes with the record. Later calls read
        only the columns that are asked for.

        Args:
            record: of a built step.
            path: relative to the attempt's folder.
            columns: which to return; None for all.

        Raises:
            InputError: as read().
            TransientError: the storage refuses or does not answer.
        """
        entry = self._entry(record, path)
        where = self.path(f"{record.address}/{record.attempt}/{path}")
        if columns is not None and (self._fs.type_name, where, entry.sha256) in _COMPARED:
            try:
                with self._fs.open_input_file(where) as stream:
                    return _parse_table(stream, entry, columns)
            except (OSError, ValueError):
                pass  # reading it whole tells a changed file from storage that does not answer
        return _parse_table(pa.BufferReader(self.read(record, path)), entry, columns)

    def _entry(self, record: Record, path: str) -> FileEntry:
        """The record's entry of a file; raises InputError if it has none."""
        if path in record.entries:
            return record.entries[path]
        folder = self.shown(record.address)
        raise InputError(f"{folder}: the record lists no {path}: delete this folder and run again")

    def _damaged(self, record: Record, path: str, what: str) -> InputError:
        """The error for a file whose bytes are not those of the record."""
        where = self.shown(f"{record.address}/{record.attempt}/{path}")
        return InputError(f"{where}: {what}: delete {self.shown(record.address)} and run again")

    def source_of(self, record: Record) -> Source:
        """Return the files of a built step as a data root; `record` is the step's."""
        base = self.path(f"{record.address}/{record.attempt}")
        return BuiltSource(self._fs, base, self, record)

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
            self._entry(record, f"{prefix}*")
        return pa.concat_tables([self.read_table(record, path, columns) for path in paths])


@dataclass(frozen=True)
class BuiltSource(Source):
    """The files of a built step as a data root, each compared with the record when it is read. Picklable.

    Args:
        filesystem: of the store.
        base: path of the attempt's folder in it.
        store: contains the step.
        record: of the step.
    """

    store: Store
    record: Record

    def open(self, path: str) -> Any:
        """Open a file of the step; arguments and errors as in read()."""
        return pa.BufferReader(self.read(path))

    def read(self, path: str) -> bytes:
        """Read a file of the step whole.

        Args:
            path: relative to the attempt's folder.

        Raises:
            FileNotFoundError: the record lists no such file.
            InputError, TransientError: as Store.read.
        """
        if path not in self.record.entries:
            raise FileNotFoundError(f"{self.base}/{path}")
        return self.store.read(self.record, path)


def _parse_table(stream: Any, entry: FileEntry, columns: list[str] | None) -> pa.Table:
    """Read a Parquet file, or some of its columns, from an open stream."""
    return pq.ParquetFile(stream).read(columns=columns, use_threads=entry.size > _MIN_BYTES_FOR_THREADS)
