"""The folder or URI that a job's --out names."""

import os
from collections.abc import Sequence

from chexseg_ray.errors import InputError
from chexseg_ray.store.store import Store


def open_output(out: str, names: Sequence[str] = (), mark: str = "") -> Store:
    """Open a folder or URI for writing; creates nothing before the first write.

    Args:
        out: the folder or URI.
        names: files and folders that the job writes there, and that a run of another job must not have written.
        mark: the file that an earlier run of the same job leaves there.

    Raises:
        InputError: `out` is a file or lies below one, it may not be written, or it contains one of the names without
            the mark.
    """
    store = Store.open(out, "--out")
    if store.is_local and not os.access(store.nearest(), os.W_OK | os.X_OK):
        raise InputError(f"--out={out}: {store.nearest()} may not be written: name another folder")
    if names and not store.exists(mark):
        others = [name for name in store.names("") if name in names]
        if others:
            raise InputError(f"--out={out}: has {others[0]}, which no run of this job made: name another folder")
    return store
