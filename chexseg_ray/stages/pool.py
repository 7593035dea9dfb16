"""The training pool: rows of fixed shape by id, in chunks, so that trials of a node share them without copies."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from chexseg_ray.artifacts import Record, Store
from chexseg_ray.data.masks import Rle, decode_rle
from chexseg_ray.segmentation.mixing import weak_subset
from chexseg_ray.stages.tables import binary_column

T = TypeVar("T")
CHUNK_ROWS = 2048


@dataclass(frozen=True)
class Rows:
    """N rows of one shape and dtype, by id, in chunks of CHUNK_ROWS; chunks may be read-only, and None where no row is wanted."""

    index: Mapping[str, int]
    chunks: Sequence[npt.NDArray[np.uint8] | None]

    def gather(self, ids: Sequence[str]) -> npt.NDArray[np.uint8]:
        """A writable copy uint8 [len(ids), ...] of the ids' rows."""
        out = []
        for cxr_id in ids:
            chunk, row = divmod(self.index[cxr_id], CHUNK_ROWS)
            rows = self.chunks[chunk]
            assert rows is not None, cxr_id
            out.append(rows[row])
        return np.stack(out)


def _rows(ids: Sequence[str], shape: Sequence[int], parts: Iterable[tuple[list[str], Callable[[int], npt.NDArray[np.uint8]]]]) -> Rows:
    """The ids' rows in their order, each written once into its place: memory is one copy of what is wanted."""
    index = {cxr_id: i for i, cxr_id in enumerate(ids)}
    table = np.empty((len(ids), *shape), dtype=np.uint8)
    for part_ids, row in parts:
        for i, cxr_id in enumerate(part_ids):
            if (place := index.get(cxr_id)) is not None:
                table[place] = row(i)
    return Rows(index, [table[i : i + CHUNK_ROWS] for i in range(0, len(ids), CHUNK_ROWS)])


def load_pixels(store: Store, record: Record, ids: Sequence[str] | None = None) -> Rows:
    """Pixels uint8 [S, S] of an images record, in the order of the ids; without them, all, in the record's."""
    size = record.config["size"]

    def parts() -> Iterator[tuple[list[str], Callable[[int], npt.NDArray[np.uint8]]]]:
        for path in record.paths("images/"):
            table = store.read_table(record, path, ["cxr_id", "pixels"])
            yield table.column("cxr_id").to_pylist(), binary_column(table, "pixels", np.uint8, (size, size)).__getitem__

    return _rows(_ids(store, record, "images/") if ids is None else ids, (size, size), parts())


def load_masks(store: Store, record: Record, size: int, ids: Sequence[str] | None = None) -> Rows:
    """Bit-packed masks uint8 [K, ceil(S S / 8)] of an images or pseudo_masks record, in the order of the ids; without them, all, in the record's."""

    def parts() -> Iterator[tuple[list[str], Callable[[int], npt.NDArray[np.uint8]]]]:
        for path in record.paths("masks/"):
            table = store.read_table(record, path, ["cxr_id", "rle"])
            rles = table.column("rle")
            yield table.column("cxr_id").to_pylist(), partial(_packed, rles, size)

    count = len(store.read_table(record, record.paths("masks/")[0], ["rle"]).column("rle")[0])
    return _rows(_ids(store, record, "masks/") if ids is None else ids, (count, -(-size * size // 8)), parts())


def _packed(rles: Any, size: int, row: int) -> npt.NDArray[np.uint8]:
    return np.stack([np.packbits(decode_rle(Rle(size, size, counts))) for counts in rles[row].as_py()])


def _ids(store: Store, record: Record, prefix: str) -> list[str]:
    return [cxr_id for path in record.paths(prefix) for cxr_id in store.read_table(record, path, ["cxr_id"]).column("cxr_id").to_pylist()]


def unpack_masks(packed: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.bool_]:
    """bool [N, K, S, S] of bit-packed uint8 [N, K, ceil(S S / 8)]."""
    bits = np.unpackbits(packed, axis=-1, count=size * size)
    return bits.reshape(*packed.shape[:2], size, size).astype(bool)


def accepted_ids(store: Store, record: Record) -> list[str]:
    """The ids of a record's masks, sorted."""
    return sorted(_ids(store, record, "masks/"))


def mask_sizes(store: Store, record: Record, wanted: set[str] | None = None) -> dict[str, tuple[int, int]]:
    """{cxr_id: the original's (height, width)} of a record's masks; only the wanted ids when given."""
    rows = store.read_tables(record, "masks/", ["cxr_id", "height", "width"]).to_pylist()
    return {r["cxr_id"]: (r["height"], r["width"]) for r in rows if wanted is None or r["cxr_id"] in wanted}


def subset_key(masks: Record, config: Mapping[str, Any]) -> str:
    """Where the weak subset of a segmentation step is shared."""
    return f"{masks.address}/weak {config['sweep_seed']} {config['trial']} {config['weak_n']}"


def weak_ids(accepted: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    """The weak images that a segmentation step draws from."""
    return weak_subset(accepted, config["sweep_seed"], config["trial"], config["weak_n"])


def shared_value(shared: Mapping[str, Any], key: str, load: Callable[[], T]) -> T:
    """A value that a sweep put into the object store, or loaded here when it did not."""
    if key not in shared:
        return load()
    import ray

    found: T = ray.get(shared[key])
    return found


def shared_rows(shared: Mapping[str, Any], key: str, ids: Sequence[str], load: Callable[[], Rows]) -> Rows:
    """Rows that a sweep put into the object store, of which only the chunks that hold one of the ids come to this node; or loaded here when
    it did not."""
    if key not in shared:
        return load()
    import ray

    index, references = shared[key]
    wanted = sorted({index[cxr_id] // CHUNK_ROWS for cxr_id in ids})
    chunks: list[npt.NDArray[np.uint8] | None] = [None] * len(references)
    for place, chunk in zip(wanted, ray.get([references[i] for i in wanted]), strict=True):
        chunks[place] = chunk
    return Rows(index, chunks)
