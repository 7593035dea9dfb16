"""The X-ray files that a command line names, and the ids that they get."""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow.fs as pafs

from chexseg_ray.artifacts import open_filesystem, storage
from chexseg_ray.data.chexpert import below_split, read_paths
from chexseg_ray.data.dicom import is_dicom
from chexseg_ray.errors import InputError
from chexseg_ray.progress import say

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
_CHEXPERT = re.compile(r"(?:^|/)(patient[^/]*)/(study[^/]*)/(view[^/]*?)(?:\.[A-Za-z]+)?$")
_LONGEST = 150  # letters of an id, which is a file's name too


@dataclass(frozen=True)
class XRay:
    """A file to predict: its id, the number of the file system that it lies on, its path there, and what people call it."""

    cxr_id: str
    place: int
    path: str
    shown: str


@dataclass(frozen=True)
class XRays:
    """All of them, with their file systems."""

    files: tuple[XRay, ...]
    filesystems: tuple[pafs.FileSystem, ...]

    @property
    def only_here(self) -> str | None:
        """A word of a folder or file of this machine, which other nodes lack; None when there is none. `file://` says that all have it."""
        return next((x.shown for x in self.files if isinstance(self.filesystems[x.place], pafs.LocalFileSystem) and "://" not in x.shown), None)


def list_images(words: Sequence[str], out: str) -> XRays:
    """Every X-ray that the words name: files, folders with all that lies below them, CSV files with a column Path.

    Args:
        words: paths or URIs.
        out: the folder that predictions go to; what lies below it is none of the X-rays.

    Raises:
        InputError: a word names nothing, a CSV leads out of its folder, or two files have one id.
    """
    if not words:
        raise InputError("name X-rays: PNG, JPEG or DICOM files, folders of them, or CSV files with a column Path; see --help")
    found: list[XRay] = []
    filesystems = []
    for place, word in enumerate(words):
        plain, _, options = word.partition("?") if "://" in word else (word, "", "")
        filesystem, where = open_filesystem(word, "IMAGE")
        filesystems.append(filesystem)
        head = plain[: len(plain.rstrip("/")) - len(where)] if "://" in plain else ""
        with storage("read", word):
            kind = filesystem.get_file_info(where).type
        if kind == pafs.FileType.Directory:
            found += [XRay(image_id(path), place, f"{where}/{path}", f"{head}{where}/{path}") for path in _below(filesystem, where, word, out)]
        elif kind != pafs.FileType.File:
            raise InputError(f"{word}: is no file and no folder: name X-rays, a folder of them or a CSV file")
        elif plain.lower().endswith(".csv"):
            folder = str(PurePosixPath(where).parent)
            own = _of_csv(filesystem, where, word)
            found += [XRay(image_id(path), place, f"{folder}/{path}", f"{head}{folder}/{path}") for path in own]
        else:
            name = plain if "://" in plain else os.path.abspath(Path(word).expanduser())  # not what a link leads to
            found.append(XRay(image_id(name if _CHEXPERT.search(name) else PurePosixPath(name).name), place, where, word if not options else plain))
    _refuse_repeated(found)
    return XRays(tuple(found), tuple(filesystems))


def _below(filesystem: pafs.FileSystem, where: str, word: str, out: str) -> list[str]:
    """Paths below a folder, sorted. Passed over, and counted: other files, and the overlays of predictions made before."""
    local = isinstance(filesystem, pafs.LocalFileSystem)
    with storage("listed", word):
        paths = _walk(where) if local else [i.path[len(where) + 1 :] for i in _selected(filesystem, where) if i.type == pafs.FileType.File]
    made = {str(PurePosixPath(path).parent) for path in paths if PurePosixPath(path).name == "predictions.json"}
    written = os.path.realpath(Path(out).expanduser()) + os.sep if local and "://" not in out else None
    own, others, before = [], 0, 0
    for path in sorted(paths):
        if (written and f"{os.path.realpath(where)}/{path}".startswith(written)) or any(str(above) in made for above in PurePosixPath(path).parents):
            before += 1
        elif path.lower().endswith(SUFFIXES) or (local and not PurePosixPath(path).suffix[1:].isalpha() and _is_dicom_file(f"{where}/{path}")):
            own.append(path)
        else:
            others += 1
    if not own:
        raise InputError(f"{word}: has no DICOM file and none that ends in {', '.join(SUFFIXES)}: name another folder")
    if others or before:
        say(f"{word}: passed over {others} other files" + (f" and {before} of predictions made before" if before else ""))
    return own


def _selected(filesystem: pafs.FileSystem, where: str) -> list[pafs.FileInfo]:
    infos: list[pafs.FileInfo] = filesystem.get_file_info(pafs.FileSelector(where, recursive=True))
    return infos


def _walk(where: str) -> list[str]:
    """Files below a local folder; linked folders are not followed."""
    return [os.path.relpath(os.path.join(folder, name), where) for folder, _, names in os.walk(where) for name in names]


def _is_dicom_file(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as stream:
        return is_dicom(stream.read(132))


def _of_csv(filesystem: pafs.FileSystem, where: str, word: str) -> list[str]:
    """The paths of a CSV as they stand where such a file exists, else from train/, valid/, val/ or test/ on; a file that is in neither place
    stays, and is rejected by name."""
    with storage("read", word), filesystem.open_input_file(where) as stream:
        paths = read_paths(stream.read(), word)
    folder = str(PurePosixPath(where).parent)
    with storage("read", word):
        infos = filesystem.get_file_info([f"{folder}/{path}" for path in paths])
    out = [path if info.type == pafs.FileType.File else below_split(path) for path, info in zip(paths, infos, strict=True)]
    if isinstance(filesystem, pafs.LocalFileSystem):
        root = os.path.realpath(folder) + os.sep
        for row, path in enumerate(out, start=2):
            if not os.path.realpath(f"{folder}/{path}").startswith(root):
                raise InputError(f"{word} row {row}: Path {path!r} leads out of the CSV's folder through a link: copy the file into it")
    return out


def image_id(path: str) -> str:
    """CheXpert's id of a path in its layout; else the path without the ending of an image, with _ for what is no letter, digit, point or dash.
    A long one keeps its end and gets a hash."""
    match = _CHEXPERT.search(path)
    ending = next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), "")
    text = re.sub(r"[^\w.-]", "_", "_".join(match.groups()) if match else path[: len(path) - len(ending)])
    return text if len(text) <= _LONGEST else f"{hashlib.sha256(text.encode()).hexdigest()[:12]}_{text[-(_LONGEST - 13) :]}"


def _refuse_repeated(found: Iterable[XRay]) -> None:
    seen: dict[str, str] = {}
    for x_ray in found:
        if x_ray.cxr_id in seen:
            raise InputError(f"{seen[x_ray.cxr_id]} and {x_ray.shown}: both have the id {x_ray.cxr_id!r}: rename one, or predict them apart")
        seen[x_ray.cxr_id] = x_ray.shown
