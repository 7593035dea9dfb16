"""The X-ray files that a command line names, and the ids that they get."""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs

from chexseg_ray.artifacts import open_filesystem, storage
from chexseg_ray.data.chexpert import below_split, read_paths
from chexseg_ray.data.dicom import HEAD, has_pydicom, is_dicom, is_dicom_directory, require_pydicom
from chexseg_ray.errors import InputError
from chexseg_ray.progress import one_line, say

DICOM_SUFFIXES = (".dcm", ".dicom")
SUFFIXES = (".png", ".jpg", ".jpeg", *DICOM_SUFFIXES)
MADE = ".chexseg_ray"  # a folder that holds a file of this name holds pictures that we drew
_CHEXPERT = re.compile(r"(?:^|/)(patient[^/]*)/(study[^/]*)/(view[^/]*?)(?:\.[A-Za-z]+)?$")
_LONGEST = 200  # bytes of an id: a file's name has at most 255, and while it is written 17 more than its id


@dataclass(frozen=True)
class XRay:
    """A file to predict: its id, the number of the file system that it lies on, its path there, what people call it, a stamp that changes
    with its bytes, and the reason that it cannot be read, where the listing shows one."""

    cxr_id: str
    place: int
    path: str
    shown: str
    stamp: str
    fault: str = ""


@dataclass(frozen=True)
class XRays:
    """All of them, with their file systems."""

    files: tuple[XRay, ...]
    filesystems: tuple[pafs.FileSystem, ...]

    @property
    def only_here(self) -> str | None:
        """A word of a folder or file of this machine, which other nodes lack; None when there is none. `file://` says that all have it."""
        return next((x.shown for x in self.files if isinstance(self.filesystems[x.place], pafs.LocalFileSystem) and "://" not in x.shown), None)


@dataclass(frozen=True)
class _File:
    """What a listing tells of a path: whether it is a regular file or a folder, and its stamp."""

    is_file: bool
    is_folder: bool
    stamp: str


@dataclass(frozen=True)
class _Found:
    """An X-ray before it has its id: its whole path as the user sees it, and the end of it that the id is made of."""

    x_ray: XRay
    whole: str
    end: str


def list_images(words: Sequence[str]) -> XRays:
    """Every X-ray that the words name, each once: files, folders with all that lies below them, CSV files with a column Path.

    Args:
        words: paths or URIs.

    Raises:
        InputError: a word names nothing, a folder of it may not be read, a CSV leads out of its folder, or a DICOM file lacks pydicom.
    """
    if not words:
        raise InputError("name X-rays: PNG, JPEG or DICOM files, folders of them, or CSV files with a column Path; see --help")
    found: dict[tuple[int, str], _Found] = {}
    filesystems: list[pafs.FileSystem] = []
    for word in words:
        filesystem, where = open_filesystem(word, "IMAGE")
        place = next((i for i, other in enumerate(filesystems) if other.equals(filesystem)), len(filesystems))
        filesystems += [filesystem] if place == len(filesystems) else []
        for own in _of_word(filesystem, place, where, word):
            found.setdefault((place, own.x_ray.path), own)
    files = _with_ids(list(found.values()))
    _require_pydicom(files, filesystems)
    return XRays(tuple(files), tuple(filesystems))


def _of_word(filesystem: pafs.FileSystem, place: int, where: str, word: str) -> Iterator[_Found]:
    plain, _, options = word.partition("?") if "://" in word else (word, "", "")
    head = plain[: len(plain.rstrip("/")) - len(where)] if "://" in plain else ""
    seen = plain.rstrip("/") if "://" in plain else os.path.abspath(Path(word).expanduser())  # not what a link leads to
    (file,) = _look(filesystem, [where], word)
    if file.is_folder:
        folder, listed = where, _below(filesystem, where, word)
    elif file.is_file and plain.lower().endswith(".csv"):
        folder, seen = (str(PurePosixPath(path).parent) for path in (where, seen))
        listed = _of_csv(filesystem, where, word)
    elif file.is_file:
        shown = word if not options else plain
        yield _Found(XRay("", place, where, shown, file.stamp, _fault(where, file)), seen, seen.rpartition("/")[2])
        return
    else:
        raise InputError(f"{word}: is no file and no folder: name X-rays, a folder of them or a CSV file")
    for path, own in listed.items():
        whole = f"{folder}/{path}"
        yield _Found(XRay("", place, whole, f"{head}{whole}", own.stamp, _fault(whole, own)), f"{seen}/{path}", path)


def _fault(path: str, file: _File) -> str:
    """Why a path cannot be read: `missing`, or `name`, which is no UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "name"
    return "" if file.is_file else "missing"


def _look(filesystem: pafs.FileSystem, paths: Sequence[str], word: str) -> list[_File]:
    with storage("read", word):
        if isinstance(filesystem, pafs.LocalFileSystem):  # not by pyarrow, which takes no name that is not UTF-8
            return [_stat(path) for path in paths]
        return [_told(info) for info in filesystem.get_file_info(list(paths))]


def _stat(path: str) -> _File:
    """A local path; a name that cannot be is not there."""
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return _File(False, False, "")
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        return _File(False, False, "")
    return _File(stat.S_ISREG(info.st_mode), stat.S_ISDIR(info.st_mode), f"{info.st_size} {info.st_mtime_ns}")


def _told(info: pafs.FileInfo) -> _File:
    return _File(info.type == pafs.FileType.File, info.type == pafs.FileType.Directory, f"{info.size} {info.mtime_ns}")


def _below(filesystem: pafs.FileSystem, where: str, word: str) -> dict[str, _File]:
    """X-rays below a folder, sorted. Passed over, and counted: other files, linked folders, and the overlays that jobs/predict.py drew."""
    local = isinstance(filesystem, pafs.LocalFileSystem)
    with storage("listed", word):
        files, links = _walk(where) if local else (_selected(filesystem, where), 0)
    made = {str(PurePosixPath(path).parent) for path in files if PurePosixPath(path).name == MADE}
    drawn = {path for path in files if made and any(str(above) in made for above in PurePosixPath(path).parents)}
    own = {path: files[path] for path in sorted(files.keys() - drawn) if _is_x_ray(path, files[path], f"{where}/{path}" if local else None)}
    others = len(files) - len(drawn) - len(own)
    counts = ((others, "other files"), (links, "linked folders"), (len(drawn) - len(made), "overlays that jobs/predict.py drew"))
    passed = " and ".join(f"{number} {what}" for number, what in counts if number)
    if not own:
        beside = f" beside {passed}" if passed else ""
        raise InputError(f"{word}: has no DICOM file and none that ends in {', '.join(SUFFIXES)}{beside}: name another folder")
    if passed:
        say(f"{one_line(word)}: passed over {passed}")
    return own


def _is_x_ray(path: str, file: _File, local: str | None) -> bool:
    """By the ending; where there is none, a local file's first bytes may say that it is DICOM. A link that leads nowhere is missing by name."""
    if path.lower().endswith(SUFFIXES):
        return file.is_file or not file.stamp
    return local is not None and file.is_file and not PurePosixPath(path).suffix[1:].isalpha() and _begins_as_dicom(local)


def _begins_as_dicom(path: str) -> bool:
    with storage("read", path), open(path, "rb") as stream:
        head = stream.read(HEAD)
    return is_dicom(head) and not is_dicom_directory(head)


def _selected(filesystem: pafs.FileSystem, where: str) -> dict[str, _File]:
    infos: list[pafs.FileInfo] = filesystem.get_file_info(pafs.FileSelector(where, recursive=True))
    return {info.path[len(where) + 1 :]: _told(info) for info in infos if info.type == pafs.FileType.File}


def _walk(where: str) -> tuple[dict[str, _File], int]:
    """What lies below a local folder and is none itself, by its path from there, and the number of linked folders, which are not followed."""
    files, links = {}, 0
    for folder, below, names in os.walk(where, onerror=_unreadable):
        links += sum(os.path.islink(os.path.join(folder, name)) for name in below)
        files.update({os.path.relpath(path, where): _stat(path) for path in (os.path.join(folder, name) for name in names)})
    return files, links


def _unreadable(error: OSError) -> None:
    if isinstance(error, PermissionError):
        raise InputError(f"{error.filename}: this folder may not be read: give yourself the right to, or name others")
    if not isinstance(error, FileNotFoundError):  # it has just gone
        raise error


def _of_csv(filesystem: pafs.FileSystem, where: str, word: str) -> dict[str, _File]:
    """The paths of a CSV as they stand where such a file exists, else from train/, valid/, val/ or test/ on; a file that is in neither place
    stays, and is rejected by name."""
    with storage("read", word), filesystem.open_input_file(where) as stream:
        paths = read_paths(stream.read(), word)
    folder = str(PurePosixPath(where).parent)
    files = _look(filesystem, [f"{folder}/{path}" for path in paths], word)
    out = [path if file.is_file else below_split(path) for path, file in zip(paths, files, strict=True)]
    moved = [row for row, path in enumerate(paths) if out[row] != path]
    for row, file in zip(moved, _look(filesystem, [f"{folder}/{out[row]}" for row in moved], word), strict=True):
        files[row] = file
    if isinstance(filesystem, pafs.LocalFileSystem):
        root = os.path.realpath(folder).rstrip(os.sep) + os.sep
        for row, path in enumerate(out, start=2):
            if not os.path.realpath(f"{folder}/{path}").startswith(root):
                raise InputError(f"{word} row {row}: Path {path!r} leads out of the CSV's folder through a link: copy the file into it")
    return dict(zip(out, files, strict=True))


def image_id(path: str) -> str:
    """CheXpert's id of a path in its layout; else the path without the ending of an image, as a name."""
    match = _CHEXPERT.search(path)
    return _name("_".join(match.groups()) if match else path[: len(path) - len(_ending(path))])


def _name(path: str) -> str:
    """A text with _ for what is no letter, digit, point or dash, and for a dash in front. A long one keeps its end and gets a hash."""
    text = re.sub(r"[^\w.-]|^-", "_", path) or "_"
    if len(text.encode()) <= _LONGEST:
        return text
    return f"{hashlib.sha256(text.encode()).hexdigest()[:12]}_{text.encode()[-(_LONGEST - 13) :].decode(errors='ignore')}"


def _ending(path: str) -> str:
    """That of an image, as it is written, or none."""
    return next((path[-len(suffix) :] for suffix in SUFFIXES if path.lower().endswith(suffix)), "")


def _with_ids(found: Sequence[_Found]) -> list[XRay]:
    """X-rays with ids of their own: files that would share one are told apart by their endings, by as many folders above them as it takes, by
    both, and where even these are written alike by a hash."""
    ids = [image_id(own.whole if _CHEXPERT.search(own.whole) else own.end) for own in found]
    alike: dict[str, list[int]] = {}
    for i, cxr_id in enumerate(ids):
        alike.setdefault(cxr_id, []).append(i)
    taken, longer = set(ids), 0
    for same in (group for group in alike.values() if len(group) > 1):
        names = next(new for new in _longer([found[i] for i in same]) if len(set(new)) == len(new) and taken.isdisjoint(new))
        taken.update(names)
        longer += len(names)
        for i, name in zip(same, names, strict=True):
            ids[i] = name
    if longer:
        say(f"{longer} X-rays would share an id with another: these have their folder or ending in it")
    return [replace(own.x_ray, cxr_id=cxr_id) for own, cxr_id in zip(found, ids, strict=True)]


def _longer(same: Sequence[_Found]) -> Iterator[list[str]]:
    """Longer and longer ids of files that would share one."""
    endings = [_ending(own.whole) for own in same]
    parts = [own.whole[: len(own.whole) - len(ending)].strip("/").split("/") for own, ending in zip(same, endings, strict=True)]
    least = [3 if _CHEXPERT.search(own.whole) else own.end.count("/") + 1 for own in same]
    for more in range(max(map(len, parts))):
        stems = ["/".join(own[-(number + more) :]) for own, number in zip(parts, least, strict=True)]
        if more:
            yield [_name(stem) for stem in stems]
        yield [_name(f"{stem}{ending.replace('.', '_')}") for stem, ending in zip(stems, endings, strict=True)]
    hashes = [hashlib.sha256(f"{own.x_ray.place} {own.whole}".encode(errors="surrogateescape")).hexdigest() for own in same]
    for digits in (12, 64):
        yield [_name(f"{own[-1]}_{text[:digits]}") for own, text in zip(parts, hashes, strict=True)]


def _require_pydicom(files: Sequence[XRay], filesystems: Sequence[pafs.FileSystem]) -> None:
    """Raise InputError for the first DICOM file when pydicom is not installed, before a model is loaded."""
    if has_pydicom():
        return
    for own in (own for own in files if not own.fault):
        local = isinstance(filesystems[own.place], pafs.LocalFileSystem)
        if own.path.lower().endswith(DICOM_SUFFIXES) or (local and not _ending(own.path) and _begins_as_dicom(own.path)):
            require_pydicom(own.shown)
