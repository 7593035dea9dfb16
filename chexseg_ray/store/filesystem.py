"""Folders and URIs as pyarrow filesystems, and which of their errors are worth a retry."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.fs as pafs

from chexseg_ray.errors import InputError, TransientError, quoted, shortened, without_credentials

# those of pyarrow's URIs that are no keys
_OPTIONS = (
    "region",
    "scheme",
    "endpoint_override",
    "allow_bucket_creation",
    "allow_bucket_deletion",
    "check_directory_existence_before_creation",
    "tls_ca_file_path",
    "retry_limit_seconds",
    "project_id",
    "blob_storage_authority",
    "dfs_storage_authority",
    "enable_tls",
    "tenant_id",
    "client_id",
    "credential_kind",
    "user",
    "replication",
    "buffer_size",
    "default_block_size",
)
_PLAIN = re.compile(r"[^@?#&;=\s]*")  # the value of an option
_CONTAINER = re.compile(r"[^/:@]*@")
_HOST = re.compile(r"(\[[^/@]*\]|[^/:]*)(:\d*)?(/|$)")

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
        TransientError: the block raises any other OSError, or the plain ArrowException that pyarrow makes of other
            errors of an object store, such as Azure's.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        is_absent = isinstance(error, ABSENT) and done not in _WRITES
        if is_absent or (not isinstance(error, OSError) and type(error) is not pa.ArrowException):
            raise
        reason = " ".join(without_credentials(str(error)).split())[:300]
        shown = where if where.isprintable() else shortened(where, 300)  # names in a store may be anything
        raise TransientError(
            f"{shown}: cannot be {done} ({reason}): check the store, its space and its credentials, then run again"
        ) from error


def refuse_credentials(root: str, field_name: str) -> None:
    """Refuse a URI with a name, password or key in it, wherever a user names a root or a file.

    It would appear in logs, in the metadata of a job and in the report. What this does not know counts as a key.

    Args:
        root: folder, file or URI.
        field_name: what the user calls it, for the message, which does not repeat the URI.

    Raises:
        InputError: the URI has an @, other than that behind the container of abfs://container@account; a text in place
            of a port; or another option than _OPTIONS, or an option with an address that has an @.
    """
    scheme, is_uri, rest = root.partition("://")
    if not is_uri:
        return
    address, _, query = rest.partition("?")
    remedy = "give the credentials in the environment or by the machine's role"
    if scheme.lower() in ("abfs", "abfss") and _CONTAINER.match(address):
        address = address.partition("@")[2]
    if "@" in address or not _HOST.match(address):
        raise InputError(f"{field_name}: a name or password in a URI would appear in logs: {remedy}")
    options = parse_qsl(query, keep_blank_values=True)
    if not all(name in _OPTIONS and _PLAIN.fullmatch(value) for name, value in options):
        rule = f"the options of a URI are {', '.join(_OPTIONS)}; a key among them would appear in logs"
        raise InputError(f"{field_name}: {rule}: {remedy}")


def open_filesystem(root: str, field_name: str) -> tuple[pafs.FileSystem, str]:
    """Open the filesystem of a folder or a URI.

    Args:
        root: folder or URI.
        field_name: what the user calls it, for messages.

    Returns:
        A pyarrow filesystem, and the path of `root` in it.

    Raises:
        InputError: pyarrow cannot open the URI, or it contains a name, password or key.
        TransientError: the storage does not answer.
    """
    refuse_credentials(root, field_name)
    if "\0" in root:
        raise InputError(f"{field_name}: {quoted(root)} has a NUL character: name a folder or a URI")
    if "://" not in root:
        try:
            return pafs.LocalFileSystem(), str(Path(root).expanduser().resolve())
        except RuntimeError:  # a link that leads to itself, or ~ of a user without a home
            raise InputError(f"{field_name}={shortened(root, 200)}: leads nowhere: name a folder") from None
    try:
        with storage("reached", root):
            filesystem, base = pafs.FileSystem.from_uri(root)
            if filesystem.type_name == "abfs":
                filesystem.get_file_info(base)  # without credentials, pyarrow's open_input_file would end the process
    except (pa.ArrowInvalid, FileNotFoundError, NotImplementedError) as error:
        reason = shortened(str(error), 300)
        rule = "name a folder or an s3://, gs://, abfs://, file:// URI"
        raise InputError(f"{field_name}={shortened(root, 200)}: pyarrow cannot open it ({reason}): {rule}") from None
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
