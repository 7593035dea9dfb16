"""The losses of one update, which travel from a GPU while the next update runs."""

from collections.abc import Sequence

import torch


class Losses:
    """The losses of an update.

    Args:
        update: its number.
        values: float [n], on its device.
        ids: the cxr_ids of its batch.
    """

    def __init__(self, update: int, values: torch.Tensor, ids: Sequence[str]) -> None:
        self.update, self.ids = update, ids
        flat = values.detach().reshape(-1)
        self._copied: torch.cuda.Event | None = None
        if flat.is_cuda:
            self._values = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True).copy_(flat, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        else:
            self._values = flat

    def read(self) -> list[float]:
        """Wait for the update, though not for the next one, and return its losses."""
        if self._copied is not None:
            self._copied.synchronize()
        found: list[float] = self._values.tolist()
        return found
