"""The folder or URI that a job's --out names."""

import os
from collections.abc import Sequence

from chexseg_ray.artifacts import Store
from chexseg_ray.errors import InputError


def open_output(out: str, names: Sequence[str] = (), mark: str = "") -> Store:
    """Open it; nothing is created until the first write.

    Args:
        out: the folder or URI.
        names: of the files and folders that the job writes there and that must be its own.
        mark: a file that says they are.

    Raises:
        InputError: it is, or lies below, a file; it may not be written; or it holds one of the names and no mark.
    """
    store = Store.open(out, "--out")
    if store.is_local and not os.access(store.nearest(), os.W_OK | os.X_OK):
        raise InputError(f"--out={out}: {store.nearest()} may not be written: name another folder")
    others = [name for name in store.names("") if name in names] if names and not store.exists(mark) else []
    if others:
        raise InputError(f"--out={out}: has {others[0]}, which no run of this job made: name another folder")
    return store
