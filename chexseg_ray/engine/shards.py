"""Stream training batches from image parts, in an order that is a function of (seed, epoch).

So a resumed training skips to its batch. Parts are permuted and read a window at a time; rows are permuted within the
window. The epoch is one sequence of rows, which is cut into batches whether or not a window ends inside one. A last
partial batch is left out; the next epoch has another order.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chexseg_ray.data import streams
from chexseg_ray.engine.tables import binary_column, split_cams
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store

WINDOW_PARTS = 16  # 16 parts x 128 rows x 102 kB at 320 px: 210 MB, of which two are held


@dataclass(frozen=True)
class Sample:
    """One training image.

    Args:
        cxr_id: its id.
        pixels: uint8 [S, S].
        target: int8 [K].
        original: (height, width) of the original, in pixels.
        cams: float16 [K, h, w]; None where no CAMs were asked for.
    """

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
        """The cxr_ids of the samples."""
        return [sample.cxr_id for sample in self.samples]

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """The pixels of the samples, uint8 [B, S, S]."""
        return np.stack([sample.pixels for sample in self.samples])

    @property
    def targets(self) -> npt.NDArray[np.int8]:
        """The targets of the samples, int8 [B, K]."""
        return np.stack([sample.target for sample in self.samples])


class ImageShards:
    """The images of some splits that have a target.

    Args:
        store: holds the records' files.
        records: images records, one per split.
        size: S, pixels of a side.
        targets: int8 [K] by cxr_id.
        cams: the cams record of the weak split, if its CAMs are needed; `records` then holds only that split.
    """

    def __init__(
        self,
        store: Store,
        records: Sequence[Record],
        size: int,
        targets: dict[str, npt.NDArray[np.int8]],
        cams: Record | None = None,
    ) -> None:
        self._store = store
        self._parts = [(record, path) for record in records for path in record.paths("images/")]
        self._size = size
        self._targets = targets
        self._cams = cams
        self._rows = [self._count(*part) for part in self._parts]
        self.num_rows = sum(self._rows)

    def _count(self, record: Record, path: str) -> int:
        """The number of images of a part that have a target."""
        ids = self._store.read_table(record, path, ["cxr_id"]).column("cxr_id").to_pylist()
        return sum(cxr_id in self._targets for cxr_id in ids)

    def batches(self, batch_size: int, seed: int, start_update: int) -> Iterator[Batch]:
        """Stream batches without end.

        Args:
            batch_size: B.
            seed: the seed of the order.
            start_update: number of updates done; the first batch is that of the next one.

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
        """The batches of one epoch without the first `skip`; windows that lie before them are not read.

        A thread reads the next window while the batches of one are used.
        """
        rng = np.random.default_rng([seed, streams.SHARD_EPOCH, epoch])
        order = rng.permutation(len(self._parts))
        windows = [order[i : i + WINDOW_PARTS] for i in range(0, len(order), WINDOW_PARTS)]
        shuffles = [rng.permutation(sum(self._rows[part] for part in window)) for window in windows]
        first, last = skip * batch_size, per_epoch * batch_size
        pending: list[Sample] = []
        position = 0
        while shuffles and position + len(shuffles[0]) <= first:
            position += len(shuffles.pop(0))
            windows.pop(0)
        with ThreadPoolExecutor(1) as reader:
            coming = [reader.submit(self._read, window) for window in windows[:1]]
            for i, shuffle in enumerate(shuffles):
                samples = coming.pop().result()
                coming = [reader.submit(self._read, window) for window in windows[i + 1 : i + 2]]
                for row in shuffle:
                    if first <= position < last:
                        pending.append(samples[row])
                    position += 1
                    if len(pending) == batch_size:
                        yield Batch(pending)
                        pending = []

    def _read(self, window: Iterable[int]) -> list[Sample]:
        """The samples of the parts of a window, one part after another."""
        return [sample for part in window for sample in self._read_part(*self._parts[part])]

    def _read_part(self, record: Record, path: str) -> list[Sample]:
        """The samples of one part, in its order."""
        table = self._store.read_table(record, path, ["cxr_id", "height", "width", "pixels"])
        pixels = binary_column(table, "pixels", np.uint8, (self._size, self._size))
        maps: npt.NDArray[np.float16] | None = None
        if self._cams is not None:
            cam_table = self._store.read_table(self._cams, path.replace("images/", "cams/weak/"))
            cam_rows, maps = split_cams(cam_table)
            assert cam_rows.column("cxr_id").equals(table.column("cxr_id")), path
        samples = []
        for i, row in enumerate(table.select(["cxr_id", "height", "width"]).to_pylist()):
            cxr_id = row["cxr_id"]
            if cxr_id in self._targets:
                original = (row["height"], row["width"])
                cams = None if maps is None else maps[i]
                samples.append(Sample(cxr_id, pixels[i], self._targets[cxr_id], original, cams))
        return samples

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Stream every image once, in id order within each record.

        Args:
            batch_size: B at most; the last batch of each part may be smaller.
        """
        for part in self._parts:
            samples = self._read_part(*part)
            for start in range(0, len(samples), batch_size):
                yield Batch(samples[start : start + batch_size])
