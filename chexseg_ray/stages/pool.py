"""The training pool: rows of fixed shape by id, in chunks, so that trials of a node share them without copies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    """N rows of one shape and dtype, by id; chunks may be read-only."""

    index: dict[str, int]
    chunks: Sequence[npt.NDArray[np.uint8]]

    def gather(self, ids: Sequence[str]) -> npt.NDArray[np.uint8]:
        """A writable copy uint8 [len(ids), ...] of the ids' rows."""
        places = [divmod(self.index[cxr_id], CHUNK_ROWS) for cxr_id in ids]
        return np.stack([self.chunks[chunk][row] for chunk, row in places])


def _in_chunks(arrays: Sequence[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.uint8]]:
    return [np.stack(arrays[i : i + CHUNK_ROWS]) for i in range(0, len(arrays), CHUNK_ROWS)]


def load_pixels(store: Store, record: Record, wanted: set[str] | None = None) -> Rows:
    """Pixels uint8 [S, S] of an images record; only the wanted ids when given."""
    size = record.config["size"]
    ids: list[str] = []
    arrays: list[npt.NDArray[np.uint8]] = []
    for path in record.paths("images/"):
        table = store.read_table(record, path, ["cxr_id", "pixels"])
        pixels = binary_column(table, "pixels", np.uint8, (size, size))
        for cxr_id, array in zip(table.column("cxr_id").to_pylist(), pixels, strict=True):
            if wanted is None or cxr_id in wanted:
                ids.append(cxr_id)
                arrays.append(array)
    return Rows({cxr_id: i for i, cxr_id in enumerate(ids)}, _in_chunks(arrays))


def load_masks(store: Store, record: Record, size: int, wanted: set[str] | None = None) -> Rows:
    """Bit-packed masks uint8 [K, ceil(S S / 8)] of an images or pseudo_masks record; only the wanted ids when given."""
    ids: list[str] = []
    arrays: list[npt.NDArray[np.uint8]] = []
    for path in record.paths("masks/"):
        for row in store.read_table(record, path, ["cxr_id", "rle"]).to_pylist():
            if wanted is None or row["cxr_id"] in wanted:
                ids.append(row["cxr_id"])
                arrays.append(np.stack([np.packbits(decode_rle(Rle(size, size, counts))) for counts in row["rle"]]))
    return Rows({cxr_id: i for i, cxr_id in enumerate(ids)}, _in_chunks(arrays))


def unpack_masks(packed: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.bool_]:
    """bool [N, K, S, S] of bit-packed uint8 [N, K, ceil(S S / 8)]."""
    bits = np.unpackbits(packed, axis=-1, count=size * size)
    return bits.reshape(*packed.shape[:2], size, size).astype(bool)


def accepted_ids(store: Store, record: Record) -> list[str]:
    """The ids of a record's masks, sorted."""
    ids: list[str] = []
    for path in record.paths("masks/"):
        ids += store.read_table(record, path, ["cxr_id"]).column("cxr_id").to_pylist()
    return sorted(ids)


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


def shared_rows(shared: Any, key: str, load: Callable[[], Rows]) -> Rows:
    """Rows that a sweep put into the object store, or loaded here when it did not."""
    if key not in shared:
        return load()
    import ray

    index, references = shared[key]
    return Rows(index, ray.get(list(references)))
