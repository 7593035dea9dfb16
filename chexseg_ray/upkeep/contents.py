"""What lies in a store: the folders of its steps, and the size of a folder. Other folders are not looked at."""

import re
from collections.abc import Iterator

import pyarrow.fs as pafs

from chexseg_ray.store.filesystem import storage
from chexseg_ray.store.store import Store
from chexseg_ray.study.steps import KINDS

_FINGERPRINT = re.compile(r"[0-9a-f]{12}")


def addresses(store: Store) -> Iterator[str]:
    """Yield the address of every folder of a step, `{kind}/{fingerprint}`, built or not, in the order of KINDS.

    Args:
        store: any store.
    """
    for kind in KINDS:
        for name in store.names(kind):
            if _FINGERPRINT.fullmatch(name):
                yield f"{kind}/{name}"


def files_below(store: Store, folder: str) -> dict[str, int]:
    """List the files below a folder of a store at any depth; none if it does not exist.

    Args:
        store: any store.
        folder: path below its root.

    Returns:
        {path below the store's root: size in bytes}.
    """
    selector = pafs.FileSelector(store.path(folder), allow_not_found=True, recursive=True)
    with storage("listed", store.path(folder)):
        found = store.filesystem.get_file_info(selector)
    start = len(store.path(""))
    return {info.path[start:]: info.size or 0 for info in found if info.type == pafs.FileType.File}
