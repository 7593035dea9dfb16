"""The X-ray files that a command line names: files, folders and CSV files, on any file system of pyarrow."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs

from chexseg_ray.data.chexpert import below_split, read_paths
from chexseg_ray.data.dicom import DICOM_SUFFIXES, HEAD, has_pydicom, is_dicom, is_dicom_directory, require_pydicom
from chexseg_ray.errors import InputError
from chexseg_ray.predict.ids import SUFFIXES, FilePath, different_ids
from chexseg_ray.progress import one_line, say
from chexseg_ray.store.filesystem import open_filesystem, storage

_PARALLEL_REQUESTS = 16  # to an object store
MADE = ".chexseg_ray"  # jobs/predict.py marks a folder of its overlays by a file of this name


@dataclass(frozen=True)
class XRay:
    """A file to predict.

    Args:
        cxr_id: its id.
        place: number of its file system.
        path: in that file system.
        shown: path or URI for messages and tables.
        stamp: size and time of the last change.
        fault: why it cannot be read (`missing` or `name`), where the listing already shows it; else empty.
    """

    cxr_id: str
    place: int
    path: str
    shown: str
    stamp: str
    fault: str = ""


@dataclass(frozen=True)
class XRays:
    """All files to predict, and their file systems by number."""

    files: tuple[XRay, ...]
    filesystems: tuple[pafs.FileSystem, ...]

    @property
    def only_here(self) -> str | None:
        """The first X-ray that lies on this machine and is named by a path; None where there is none.

        Other nodes may not have it. A `file://` URI states that every node has the file.
        """
        for x_ray in self.files:
            is_local = isinstance(self.filesystems[x_ray.place], pafs.LocalFileSystem)
            if is_local and "://" not in x_ray.shown:
                return x_ray.shown
        return None


@dataclass(frozen=True)
class _File:
    """What a listing reports of a path: whether it is a regular file or a folder, and its stamp."""

    is_file: bool
    is_folder: bool
    stamp: str


def list_images(words: Sequence[str]) -> XRays:
    """List every X-ray that the words name, each once.

    Args:
        words: paths or URIs of files, of folders, which stand for all X-rays below them, or of CSV files with a column
            Path.

    Raises:
        InputError: a word names nothing, a folder has no X-ray or may not be read, a CSV file leads out of its folder,
            or there is a DICOM file and pydicom is not installed.
        TransientError: the storage does not answer.
    """
    if not words:
        raise InputError(
            "name X-rays: PNG, JPEG or DICOM files, folders of them, or CSV files with a column Path; see --help"
        )
    found: dict[tuple[int, str], tuple[XRay, FilePath]] = {}
    filesystems: list[pafs.FileSystem] = []
    for word in words:
        filesystem, where = open_filesystem(word, "IMAGE")
        number = next((i for i, other in enumerate(filesystems) if other.equals(filesystem)), len(filesystems))
        if number == len(filesystems):
            filesystems.append(filesystem)
        for x_ray, named in _list_word(filesystem, number, where, word):
            found.setdefault((number, x_ray.path), (x_ray, named))
    ids, num_longer = different_ids([named for _, named in found.values()])
    if num_longer:
        say(f"{num_longer} X-rays would share an id with another: their ids get a folder or ending added")
    files = [replace(x_ray, cxr_id=cxr_id) for (x_ray, _), cxr_id in zip(found.values(), ids, strict=True)]
    _require_pydicom(files, filesystems)
    return XRays(tuple(files), tuple(filesystems))


def _list_word(filesystem: pafs.FileSystem, number: int, where: str, word: str) -> Iterator[tuple[XRay, FilePath]]:
    """The X-rays that one word names, still without ids, and their paths as the user sees them.

    Args:
        filesystem: of the word.
        number: of the file system.
        where: the word's path in it.
        word: a file, folder or CSV file, as the user wrote it.
    """
    plain, _, options = word.partition("?") if "://" in word else (word, "", "")
    head = plain[: len(plain.rstrip("/")) - len(where)] if "://" in plain else ""
    seen = plain.rstrip("/") if "://" in plain else os.path.abspath(Path(word).expanduser())  # links stay links
    (file,) = _look_up(filesystem, [where], word)
    if file.is_folder:
        folder, listed = where, _list_folder(filesystem, where, word)
    elif file.is_file and plain.lower().endswith(".csv"):
        folder, seen = (str(PurePosixPath(path).parent) for path in (where, seen))
        listed = _list_csv(filesystem, where, word)
    elif file.is_file:
        x_ray = XRay("", number, where, plain if options else word, file.stamp, _fault(where, file))
        yield x_ray, FilePath(number, seen, seen.rpartition("/")[2])
        return
    else:
        raise InputError(f"{word}: is neither a file nor a folder: name X-rays, a folder of them or a CSV file")
    for path, entry in listed.items():
        whole = f"{folder}/{path}"
        x_ray = XRay("", number, whole, f"{head}{whole}", entry.stamp, _fault(whole, entry))
        yield x_ray, FilePath(number, f"{seen}/{path}", path)


def _fault(path: str, file: _File) -> str:
    """Why a path cannot be read: `missing`, or `name` if it is not UTF-8; else empty."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "name"
    return "" if file.is_file else "missing"


def _look_up(filesystem: pafs.FileSystem, paths: Sequence[str], word: str) -> list[_File]:
    """Look up paths of one file system; `word` is what the user wrote, for messages."""
    with storage("read", word):
        if isinstance(filesystem, pafs.LocalFileSystem):  # pyarrow accepts no name that is not UTF-8
            return [_stat(path) for path in paths]
        return [_from_info(info) for info in filesystem.get_file_info(list(paths))]


def _stat(path: str) -> _File:
    """Look up a local path; a name that the system does not allow counts as missing."""
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return _File(False, False, "")
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        return _File(False, False, "")
    return _File(stat.S_ISREG(info.st_mode), stat.S_ISDIR(info.st_mode), f"{info.st_size} {info.st_mtime_ns}")


def _from_info(info: pafs.FileInfo) -> _File:
    return _File(info.type == pafs.FileType.File, info.type == pafs.FileType.Directory, f"{info.size} {info.mtime_ns}")


def _list_folder(filesystem: pafs.FileSystem, where: str, word: str) -> dict[str, _File]:
    """The X-rays below a folder by their paths from there, sorted: PNG and JPEG by their endings, DICOM by its bytes.

    Prints how many other files, linked folders and overlays of jobs/predict.py it passes over, and names directories of
    discs (DICOMDIR). A link with the ending of an X-ray that leads nowhere is listed, and rejected later as missing.
    """
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    with storage("listed", word):
        if is_local:
            files, num_links = _walk(where)
        else:
            files, num_links = _select(filesystem, where), 0
    marked = {str(PurePosixPath(path).parent) for path in files if PurePosixPath(path).name == MADE}
    overlays: set[str] = set()
    if marked:
        overlays = {path for path in files if any(str(folder) in marked for folder in PurePosixPath(path).parents)}
    seen = sorted(files.keys() - overlays)
    by_ending = [path for path in seen if path.lower().endswith(SUFFIXES)]
    others = [path for path in seen if files[path].is_file and not path.lower().endswith(SUFFIXES)]
    heads = dict(zip(others, _heads(filesystem, [f"{where}/{path}" for path in others]), strict=True))
    directories = [path for path in others if is_dicom_directory(heads[path])]
    by_bytes = {path for path in others if is_dicom(heads[path])} - {*directories}
    x_rays = {p: files[p] for p in seen if p in by_bytes}
    x_rays |= {path: files[path] for path in by_ending if files[path].is_file or not files[path].stamp}
    num_others = len(seen) - len(x_rays) - len(directories)
    counts = (
        (num_others, "other files"),
        (num_links, "linked folders"),
        (len(overlays) - len(marked), "overlays that jobs/predict.py drew"),
        (len(directories), f"DICOM directories without an image ({', '.join(directories[:3])})"),
    )
    passed = " and ".join(f"{number} {what}" for number, what in counts if number)
    if not x_rays:
        beside = f" beside {passed}" if passed else ""
        raise InputError(
            f"{word}: has no DICOM file and none that ends in {', '.join(SUFFIXES)}{beside}: name another folder"
        )
    if passed:
        say(f"{one_line(word)}: passed over {passed}")
    return dict(sorted(x_rays.items()))


def _heads(filesystem: pafs.FileSystem, paths: Sequence[str]) -> list[bytes]:
    """The first bytes of files, which show what they are; of several at once where the files are not local."""
    if isinstance(filesystem, pafs.LocalFileSystem):
        return [_head(filesystem, path) for path in paths]
    with ThreadPoolExecutor(_PARALLEL_REQUESTS) as pool:
        return list(pool.map(partial(_head, filesystem), paths))


def _head(filesystem: pafs.FileSystem, path: str) -> bytes:
    """The first bytes of a file; none of one that is gone, or that lies here and may not be read by this user."""
    with storage("read", path):
        try:
            if isinstance(filesystem, pafs.LocalFileSystem):  # pyarrow accepts no name that is not UTF-8
                with open(path, "rb") as stream:
                    return stream.read(HEAD)
            with filesystem.open_input_file(path) as stream:
                head: bytes = stream.read(HEAD)
            return head
        except FileNotFoundError:
            return b""
        except PermissionError:
            if isinstance(filesystem, pafs.LocalFileSystem):
                return b""
            raise


def _select(filesystem: pafs.FileSystem, where: str) -> dict[str, _File]:
    """The files below a folder of any file system, by their paths from there."""
    infos: list[pafs.FileInfo] = filesystem.get_file_info(pafs.FileSelector(where, recursive=True))
    return {info.path[len(where) + 1 :]: _from_info(info) for info in infos if info.type == pafs.FileType.File}


def _walk(where: str) -> tuple[dict[str, _File], int]:
    """Everything but folders below a local folder, by its path from there, and the number of linked folders.

    Linked folders are not followed.
    """
    files: dict[str, _File] = {}
    num_links = 0
    for folder, subfolders, names in os.walk(where, onerror=_raise_unreadable):
        num_links += sum(os.path.islink(os.path.join(folder, name)) for name in subfolders)
        for name in names:
            path = os.path.join(folder, name)
            files[os.path.relpath(path, where)] = _stat(path)
    return files, num_links


def _raise_unreadable(error: OSError) -> None:
    """Raise an error of os.walk, except for a folder that was deleted meanwhile."""
    if isinstance(error, PermissionError):
        raise InputError(f"{error.filename}: this folder may not be read: give yourself the right to, or name others")
    if not isinstance(error, FileNotFoundError):
        raise error


def _list_csv(filesystem: pafs.FileSystem, where: str, word: str) -> dict[str, _File]:
    """The files that a CSV file lists, by their paths from its folder.

    A path that does not exist as written is taken from train/, valid/, val/ or test/ on, as in CheXpert's own CSV
    files. A file that is missing there too stays in the list; it is rejected later as missing.

    Raises:
        InputError: the file is not a CSV with a column Path, or a link leads out of its folder.
    """
    with storage("read", word), filesystem.open_input_file(where) as stream:
        paths = read_paths(stream.read(), word)
    folder = str(PurePosixPath(where).parent)
    files = _look_up(filesystem, [f"{folder}/{path}" for path in paths], word)
    found = [path if file.is_file else below_split(path) for path, file in zip(paths, files, strict=True)]
    moved = [row for row, path in enumerate(paths) if found[row] != path]
    moved_files = _look_up(filesystem, [f"{folder}/{found[row]}" for row in moved], word)
    for row, file in zip(moved, moved_files, strict=True):
        files[row] = file
    if isinstance(filesystem, pafs.LocalFileSystem):
        root = os.path.realpath(folder).rstrip(os.sep) + os.sep
        for row, path in enumerate(found, start=2):
            if not os.path.realpath(f"{folder}/{path}").startswith(root):
                rule = f"Path {path!r} leads out of the CSV's folder through a link"
                raise InputError(f"{word} row {row}: {rule}: copy the file into it")
    return dict(zip(found, files, strict=True))


def _require_pydicom(files: Sequence[XRay], filesystems: Sequence[pafs.FileSystem]) -> None:
    """Refuse the first DICOM file if pydicom is not installed, before a model is loaded.

    Raises:
        InputError: there is a DICOM file, and pydicom is not installed.
    """
    if has_pydicom():
        return
    for x_ray in files:
        is_known = x_ray.path.lower().endswith(SUFFIXES)
        if x_ray.path.lower().endswith(DICOM_SUFFIXES) and not x_ray.fault:
            require_pydicom(x_ray.shown)
        if not is_known and not x_ray.fault and is_dicom(_head(filesystems[x_ray.place], x_ray.path)):
            require_pydicom(x_ray.shown)
