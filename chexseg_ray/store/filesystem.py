"""Folders and URIs as pyarrow filesystems, and which of their errors are worth a retry."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from chexseg_ray.errors import InputError, TransientError

_WRITES = ("written", "claimed")
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)  # raised where a file to be read is not there


@contextmanager
def storage(done: str, where: str) -> Iterator[None]:
    """Turn errors of storage inside the block into transient ones, except those for a file to read that is not there.

    Args:
        done: what the block does, as a participle for the message: read, written, listed, ...
        where: path or URI, for the message.

    Raises:
        FileNotFoundError, IsADirectoryError, NotADirectoryError: as the block raises them, unless it writes.
        TransientError: the block raises any other OSError.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, ABSENT) and done not in _WRITES:
            raise
        reason = " ".join(str(error).split())[:300]
        raise TransientError(
            f"{where}: cannot be {done} ({reason}): check the store, its space and its credentials, then run again"
        ) from error


def open_filesystem(root: str, field_name: str) -> tuple[pafs.FileSystem, str]:
    """Open the filesystem of a folder or a URI.

    Args:
        root: folder or URI.
        field_name: what the user calls it, for messages.

    Returns:
        A pyarrow filesystem, and the path of `root` in it.

    Raises:
        InputError: pyarrow cannot open the URI, or it contains a name or password.
        TransientError: the storage does not answer.
    """
    scheme, _, rest = root.partition("://")
    if "@" in rest.partition("?")[0] and not scheme.startswith("abfs"):  # abfs://container@account is not a secret
        rule = "a name or password in a URI would appear in logs"
        remedy = "give the credentials in the environment or by the machine's role"
        raise InputError(f"{field_name}: {rule}: {remedy}")
    if "://" not in root:
        return pafs.LocalFileSystem(), str(Path(root).expanduser().resolve())
    try:
        with storage("reached", root):
            filesystem, base = pafs.FileSystem.from_uri(root)
    except (pa.ArrowInvalid, FileNotFoundError, NotImplementedError) as error:
        raise InputError(
            f"{field_name}={root}: pyarrow cannot open it ({error}): name a folder or an s3://, gs://, file:// URI"
        ) from None
    return filesystem, str(base)


@dataclass(frozen=True)
class Source:
    """A data root opened for reading. Picklable.

    Args:
        filesystem: of pyarrow.
        base: path of the root in it.
    """

    filesystem: pafs.FileSystem
    base: str

    def open(self, path: str) -> Any:
        """Open a file below the root as a pyarrow stream.

        Args:
            path: relative to the root.

        Raises:
            FileNotFoundError: there is no such file, or it is a folder.
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
        """Read a file whole.

        Args:
            path: relative to the root.

        Raises:
            FileNotFoundError: there is no such file, or it is a folder.
            TransientError: the storage refuses or does not answer.
        """
        with storage("read", f"{self.base}/{path}"), self.open(path) as stream:
            data: bytes = stream.read()
        return data
