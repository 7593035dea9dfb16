"""Stream training batches from image parts: epoch e's order is a function of (seed, e), so a resumed run skips to its batch.

Parts are permuted and read a window at a time; rows are permuted within the window. A batch never spans windows' ends by
chance: the epoch is one sequence of rows, cut into batches; a last partial batch is left out (next epoch's order differs).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chexseg_ray.artifacts import Record, Store
from chexseg_ray.stages.tables import binary_column, split_cams

WINDOW_PARTS = 16  # 16 parts x 128 rows x 102 kB at 320 px: 210 MB


@dataclass(frozen=True)
class Sample:
    """One image: pixels uint8 [S, S], its target int8 [K], the original's (height, width), and its CAMs float16 [K, h, w] if asked for."""

    cxr_id: str
    pixels: npt.NDArray[np.uint8]
    target: npt.NDArray[np.int8]
    original: tuple[int, int]
    cams: npt.NDArray[np.float16] | None


@dataclass(frozen=True)
class Batch:
    """B samples."""

    samples: list[Sample]

    @property
    def ids(self) -> list[str]:
        return [sample.cxr_id for sample in self.samples]

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """uint8 [B, S, S]."""
        return np.stack([sample.pixels for sample in self.samples])

    @property
    def targets(self) -> npt.NDArray[np.int8]:
        """int8 [B, K]."""
        return np.stack([sample.target for sample in self.samples])


class ImageShards:
    """The images that have a target, from the image parts of some splits; with their CAMs when a `cams` record is given."""

    def __init__(
        self, store: Store, records: Sequence[Record], size: int, targets: dict[str, npt.NDArray[np.int8]], cams: Record | None = None
    ) -> None:  # fmt: skip
        self._store = store
        self._parts = [(record, path) for record in records for path in record.paths("images/")]
        self._size = size
        self._targets = targets
        self._cams = cams
        self._rows = [self._count(*part) for part in self._parts]
        self.num_rows = sum(self._rows)

    def _count(self, record: Record, path: str) -> int:
        ids = self._store.read_table(record, path, ["cxr_id"]).column("cxr_id").to_pylist()
        return sum(cxr_id in self._targets for cxr_id in ids)

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
        pending: list[Sample] = []
        position = 0
        for window, shuffle in zip(windows, shuffles, strict=True):
            if position + len(shuffle) <= first:
                position += len(shuffle)
                continue
            samples = self._read(window)
            for row in shuffle:
                if first <= position < last:
                    pending.append(samples[row])
                position += 1
                if len(pending) == batch_size:
                    yield Batch(pending)
                    pending = []

    def _read(self, window: Iterable[int]) -> list[Sample]:
        return [sample for p in window for sample in self._read_part(*self._parts[p])]

    def _read_part(self, record: Record, path: str) -> list[Sample]:
        table = self._store.read_table(record, path, ["cxr_id", "height", "width", "pixels"])
        pixels = binary_column(table, "pixels", np.uint8, (self._size, self._size))
        cams = None if self._cams is None else split_cams(self._store.read_table(self._cams, path.replace("images/", "cams/weak/")))
        assert cams is None or cams[0].column("cxr_id").equals(table.column("cxr_id")), path
        rows = table.select(["cxr_id", "height", "width"]).to_pylist()
        return [
            Sample(r["cxr_id"], pixels[i], self._targets[r["cxr_id"]], (r["height"], r["width"]), None if cams is None else cams[1][i])
            for i, r in enumerate(rows)
            if r["cxr_id"] in self._targets
        ]

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, in id order within each record; for validation."""
        for part in self._parts:
            samples = self._read_part(*part)
            for start in range(0, len(samples), batch_size):
                yield Batch(samples[start : start + batch_size])
