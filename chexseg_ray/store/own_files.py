"""Which files of a folder a job has written, by a list that it keeps there; all others are the user's and stay."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from chexseg_ray.store.files import Files


@contextmanager
def own_files(root: Files, folder: str, list_name: str, names: Collection[str], heading: str = "") -> Iterator[None]:
    """Write files into a folder in the block; afterwards delete those that earlier runs wrote and this one does not.

    In the block, and after an error in it, the list has the files of both, so that it names every one that is there.

    Args:
        root: what the folder lies in.
        folder: its path below the root.
        list_name: name of the list in it, a file name a line; a folder without one has no files of earlier runs.
        names: of the files that the block writes.
        heading: the list's first line, if it has one.

    Raises:
        TransientError: the storage refuses or does not answer.
    """
    where = f"{folder}/{list_name}"
    try:
        lines = root.get(where).decode(errors="surrogateescape").split("\n")
    except FileNotFoundError:
        lines = []
    earlier = {*lines[1 if heading else 0 :]} - {"", list_name}

    def write_list(listed: Collection[str]) -> None:
        text = "".join(f"{line}\n" for line in filter(None, (heading, *sorted(listed))))
        root.put(where, text.encode(errors="surrogateescape"))

    write_list(earlier | {*names})
    yield
    for name in earlier & {*root.names(folder)} - {*names}:
        if root.exists(f"{folder}/{name}"):
            root.delete(f"{folder}/{name}")
    write_list(names)
