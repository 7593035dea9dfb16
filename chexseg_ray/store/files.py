"""Files: the files below one root, a local folder or any pyarrow.fs URI, each written whole or not at all."""

import io
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Self, TypeVar

import pyarrow.fs as pafs

from chexseg_ray.errors import InputError
from chexseg_ray.store.filesystem import open_filesystem, storage

_OBJECT_STORES = ("s3", "gcs", "abfs")  # a key needs no folder
_CHUNK_BYTES = 4_000_000  # of a file that are written at once
_PARALLEL_REQUESTS = 32  # to an object store, where a record takes some 30 ms; 0.1 ms on a disk

T = TypeVar("T")
R = TypeVar("R")


class Files:
    """The files below one root."""

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
    def open(cls, root: str, name: str = "store.root") -> Self:
        """Open a root; nothing is created until the first write.

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
        return (type(self), (self._fs, self._base, self.root))

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

    @property
    def shown_root(self) -> str:
        """The root for people: a path, or a URI without its options."""
        return self.shown("").rstrip("/")

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
                try:
                    with temporary.open("wb") as stream:
                        shutil.copyfileobj(source, stream, _CHUNK_BYTES)
                        stream.flush()
                        os.fsync(stream.fileno())
                    temporary.replace(target)
                finally:
                    temporary.unlink(missing_ok=True)  # still there after an error or Ctrl-C
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

        A name that is not UTF-8, which nothing of ours has, is left out.

        Raises:
            TransientError: the storage refuses or does not answer.
        """
        selector = pafs.FileSelector(self.path(relative), allow_not_found=True)
        with storage("listed", self.path(relative)):
            return sorted(filter(None, map(_name, self._fs.get_file_info(selector))))

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


def _name(info: pafs.FileInfo) -> str | None:
    """The last part of a path; None where it is not UTF-8."""
    try:
        return str(info.base_name)
    except UnicodeDecodeError:
        return None
