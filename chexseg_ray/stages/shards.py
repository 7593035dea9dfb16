"""Stream training batches from image parts: epoch e's order is a function of (seed, e), so a resumed run skips to its batch.

Parts are permuted and read a window at a time; rows are permuted within the window. A batch never spans windows' ends by
chance: the epoch is one sequence of rows, cut into batches; a last partial batch is left out (next epoch's order differs).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from chexseg_ray.artifacts import Record, Store
from chexseg_ray.stages.tables import binary_column

WINDOW_PARTS = 16  # 16 parts x 128 rows x 102 kB at 320 px: 210 MB


@dataclass(frozen=True)
class Batch:
    """Pixels uint8 [B, S, S] and targets int8 [B, K] of B images."""

    ids: list[str]
    pixels: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.int8]


class ImageShards:
    """The image parts of some splits with a target for each row."""

    def __init__(self, store: Store, records: Sequence[Record], size: int, targets: dict[str, npt.NDArray[np.int8]]) -> None:
        self._store = store
        self._parts = [(record, path) for record in records for path in record.paths("images/")]
        self._rows = [_num_rows(store, record, path) for record, path in self._parts]
        self._size = size
        self._targets = targets
        self.num_rows = sum(self._rows)

    def batches(self, batch_size: int, seed: int, start_update: int) -> Iterator[Batch]:
        """Endless batches from update `start_update` on.

        Raises:
            ValueError: fewer rows than one batch.
        """
        if self.num_rows < batch_size:
            raise ValueError(f"{self.num_rows} training images are fewer than one batch of {batch_size}")
        per_epoch = self.num_rows // batch_size
        epoch, skip = divmod(start_update, per_epoch)
        while True:
            yield from self._epoch(batch_size, seed, epoch, skip, per_epoch)
            epoch, skip = epoch + 1, 0

    def _epoch(self, batch_size: int, seed: int, epoch: int, skip: int, per_epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng([seed, 505, epoch])
        order = rng.permutation(len(self._parts))
        windows = [order[i : i + WINDOW_PARTS] for i in range(0, len(order), WINDOW_PARTS)]
        shuffles = [rng.permutation(sum(self._rows[p] for p in window)) for window in windows]
        first, last = skip * batch_size, per_epoch * batch_size
        pending: list[tuple[str, npt.NDArray[np.uint8]]] = []
        position = 0
        for window, shuffle in zip(windows, shuffles, strict=True):
            if position + len(shuffle) <= first:
                position += len(shuffle)
                continue
            ids, pixels = self._read(window)
            for row in shuffle:
                if first <= position < last:
                    pending.append((ids[row], pixels[row]))
                position += 1
                if len(pending) == batch_size:
                    yield self._batch(pending)
                    pending = []

    def _read(self, window: Iterable[int]) -> tuple[list[str], npt.NDArray[np.uint8]]:
        tables = [self._store.read_table(*self._parts[p], ["cxr_id", "pixels"]) for p in window]
        table = pa.concat_tables(tables)
        return table.column("cxr_id").to_pylist(), binary_column(table, "pixels", np.uint8, (self._size, self._size))

    def _batch(self, rows: list[tuple[str, npt.NDArray[np.uint8]]]) -> Batch:
        ids = [cxr_id for cxr_id, _ in rows]
        return Batch(ids, np.stack([pixels for _, pixels in rows]), np.stack([self._targets[i] for i in ids]))

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, in id order within each record; for validation."""
        for part in range(len(self._parts)):
            ids, pixels = self._read([part])
            for start in range(0, len(ids), batch_size):
                own = slice(start, start + batch_size)
                yield self._batch(list(zip(ids[own], pixels[own], strict=True)))


def _num_rows(store: Store, record: Record, path: str) -> int:
    metadata: Any = pq.read_metadata(pa.BufferReader(store.read(record, path)))
    return int(metadata.num_rows)
