"""The ids of X-ray files: CheXpert's where a path has its layout, else the path as a name. No two files share an id."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chexseg_ray.data.dicom import DICOM_SUFFIXES

SUFFIXES = (".png", ".jpg", ".jpeg", *DICOM_SUFFIXES)
_CHEXPERT = re.compile(r"(?:^|/)(patient[^/]*)/(study[^/]*)/(view[^/]*?)(?:\.[A-Za-z]+)?$")
_MAX_BYTES = 200  # of an id: a file's name has at most 255 bytes, and 17 more than its id while it is written


@dataclass(frozen=True)
class FilePath:
    """The path of an X-ray.

    Args:
        filesystem: number of the file system.
        whole: the whole path as the user sees it.
        end: the part of it below the folder or CSV that the user named, of which the id is made.
    """

    filesystem: int
    whole: str
    end: str


def ending(path: str) -> str:
    """The ending of an image's name: one of SUFFIXES, spelt as in `path`; empty where it has none.

    Args:
        path: of the file.
    """
    return next((path[-len(suffix) :] for suffix in SUFFIXES if path.lower().endswith(suffix)), "")


def image_id(path: str) -> str:
    """The id of a file: CheXpert's where its path has that layout, else the path without its ending, as a file name.

    Args:
        path: of the file.

    Returns:
        Letters, digits, points, dashes and _; at most 200 bytes as UTF-8.
    """
    match = _CHEXPERT.search(path)
    return _as_name("_".join(match.groups()) if match else _without_suffix(path, ending(path)))


def different_ids(paths: Sequence[FilePath]) -> tuple[list[str], int]:
    """Give each file an id that no other has.

    Files that image_id gives the same id get their endings, as many of the folders above them as needed, or both; where
    these are equal too, a hash.

    Args:
        paths: of the files, each once.

    Returns:
        The ids in the order of the paths, and how many of them are longer than those of image_id.
    """
    ids = [image_id(path.whole if _CHEXPERT.search(path.whole) else path.end) for path in paths]
    rows_by_id: dict[str, list[int]] = {}
    for row, cxr_id in enumerate(ids):
        rows_by_id.setdefault(cxr_id, []).append(row)
    taken, num_longer = set(ids), 0
    for rows in rows_by_id.values():
        if len(rows) == 1:
            continue
        candidates = _longer_ids([paths[row] for row in rows])
        names = next(names for names in candidates if len(set(names)) == len(names) and taken.isdisjoint(names))
        taken.update(names)
        num_longer += len(names)
        for row, name in zip(rows, names, strict=True):
            ids[row] = name
    return ids, num_longer


def _longer_ids(paths: Sequence[FilePath]) -> Iterator[list[str]]:
    """Ids of files that would share one, longer each time; the last ones always differ."""
    endings = [ending(path.whole) for path in paths]
    stems = [_without_suffix(path.whole, suffix) for path, suffix in zip(paths, endings, strict=True)]
    folders = [stem.strip("/").split("/") for stem in stems]
    shortest = [3 if _CHEXPERT.search(path.whole) else path.end.count("/") + 1 for path in paths]
    for more in range(max(map(len, folders))):
        ends = ["/".join(parts[-(number + more) :]) for parts, number in zip(folders, shortest, strict=True)]
        if more:
            yield [_as_name(end) for end in ends]
        yield [_as_name(f"{end}{suffix.replace('.', '_')}") for end, suffix in zip(ends, endings, strict=True)]
    hashes = [_hash(f"{path.filesystem} {path.whole}") for path in paths]
    for digits in (12, 64):
        yield [_as_name(f"{parts[-1]}_{text[:digits]}") for parts, text in zip(folders, hashes, strict=True)]


def _as_name(path: str) -> str:
    """Make a file name of a path: only letters, digits, points, dashes and _, and no dash in front.

    A long one keeps its end and gets a hash.
    """
    name = re.sub(r"[^\w.-]|^-", "_", path) or "_"
    if len(name.encode()) <= _MAX_BYTES:
        return name
    end = name.encode()[-(_MAX_BYTES - 13) :].decode(errors="ignore")
    return f"{_hash(name)[:12]}_{end}"


def _without_suffix(path: str, suffix: str) -> str:
    return path[: len(path) - len(suffix)]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
