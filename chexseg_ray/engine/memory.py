"""A GPU's memory that is too small, as one line. Does not import torch, which tasks without networks do without."""

from collections.abc import Iterator
from contextlib import contextmanager

from chexseg_ray.errors import InputError


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Turn the block's CUDA out-of-memory error, which no retry helps, into one line.

    Args:
        remedy: what to do.

    Raises:
        InputError: the GPU's memory is too small.
    """
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's
            raise
        said = str(error).split(". ")
        facts = [part for part in said if part.startswith(("Tried to allocate", "GPU ")) or " allowed" in part]
        raise InputError(f"the GPU's memory is too small ({'; '.join(facts)[:300]}): {remedy}") from None
