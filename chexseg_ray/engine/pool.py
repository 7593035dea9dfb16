"""The training pool: rows of fixed shape by id, in chunks, so that trials of a node share them without copies.

The driver puts what the waiting points draw from into Ray's object store once (share_pool); trials take from there what
they need (shared_rows, shared_value), or load it themselves when nothing is shared.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from chexseg_ray.data.masks import Rle, decode_rle
from chexseg_ray.engine.tables import binary_column
from chexseg_ray.segmentation.mixing import weak_subset
from chexseg_ray.store.step import Record, Step
from chexseg_ray.store.store import Store

T = TypeVar("T")
CHUNK_ROWS = 2048


@dataclass(frozen=True)
class Rows:
    """N rows of one shape and dtype, by id.

    Args:
        index: the row number of each id.
        chunks: uint8 [at most CHUNK_ROWS, ...] each, may be read-only; None where none of its rows is wanted.
    """

    index: Mapping[str, int]
    chunks: Sequence[npt.NDArray[np.uint8] | None]

    def gather(self, ids: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Copy the ids' rows into a new, writable array.

        Args:
            ids: n cxr_ids whose chunks are there.

        Returns:
            uint8 [n, ...], in the order of the ids.
        """
        out = []
        for cxr_id in ids:
            chunk, row = divmod(self.index[cxr_id], CHUNK_ROWS)
            rows = self.chunks[chunk]
            assert rows is not None, cxr_id
            out.append(rows[row])
        return np.stack(out)


def _collect_rows(
    ids: Sequence[str], shape: Sequence[int], parts: Iterable[tuple[list[str], Callable[[int], npt.NDArray[np.uint8]]]]
) -> Rows:
    """Write the ids' rows, in the order of the ids, into one table, which is all the memory that they take.

    Args:
        ids: the wanted cxr_ids.
        shape: shape of one row.
        parts: of each part file its cxr_ids, and a function that returns its row i as uint8 [*shape].
    """
    index = {cxr_id: position for position, cxr_id in enumerate(ids)}
    table = np.empty((len(ids), *shape), dtype=np.uint8)
    for part_ids, read_row in parts:
        for i, cxr_id in enumerate(part_ids):
            position = index.get(cxr_id)
            if position is not None:
                table[position] = read_row(i)
    return Rows(index, [table[i : i + CHUNK_ROWS] for i in range(0, len(ids), CHUNK_ROWS)])


def load_pixels(store: Store, record: Record, ids: Sequence[str] | None = None) -> Rows:
    """Read pixels uint8 [S, S] of an images record.

    Args:
        store: holds the record's files.
        record: the images record.
        ids: the wanted cxr_ids, in the order of the rows; None reads all, in the record's order.
    """
    size = record.config["size"]

    def parts() -> Iterator[tuple[list[str], Callable[[int], npt.NDArray[np.uint8]]]]:
        for path in record.paths("images/"):
            table = store.read_table(record, path, ["cxr_id", "pixels"])
            yield table.column("cxr_id").to_pylist(), binary_column(table, "pixels", np.uint8, (size, size)).__getitem__

    if ids is None:
        ids = _recorded_ids(store, record, "images/")
    return _collect_rows(ids, (size, size), parts())


def load_masks(store: Store, record: Record, size: int, ids: Sequence[str] | None = None) -> Rows:
    """Read bit-packed masks uint8 [K, ceil(S S / 8)] of an images or pseudo_masks record.

    Args:
        store: holds the record's files.
        record: the record.
        size: S, pixels of a side.
        ids: the wanted cxr_ids, in the order of the rows; None reads all, in the record's order.
    """

    def parts() -> Iterator[tuple[list[str], Callable[[int], npt.NDArray[np.uint8]]]]:
        for path in record.paths("masks/"):
            table = store.read_table(record, path, ["cxr_id", "rle"])
            rles = table.column("rle")
            yield table.column("cxr_id").to_pylist(), partial(_packed_masks, rles, size)

    num_pathologies = len(store.read_table(record, record.paths("masks/")[0], ["rle"]).column("rle")[0])
    packed_bytes = -(-size * size // 8)  # rounded up
    if ids is None:
        ids = _recorded_ids(store, record, "masks/")
    return _collect_rows(ids, (num_pathologies, packed_bytes), parts())


def _packed_masks(rles: Any, size: int, row: int) -> npt.NDArray[np.uint8]:
    """The masks of one row of an `rle` column, bit-packed: uint8 [K, ceil(S S / 8)]."""
    return np.stack([np.packbits(decode_rle(Rle(size, size, counts))) for counts in rles[row].as_py()])


def _recorded_ids(store: Store, record: Record, prefix: str) -> list[str]:
    """The cxr_ids of a record's part files whose paths begin with a prefix, in the record's order."""
    ids: list[str] = []
    for path in record.paths(prefix):
        ids.extend(store.read_table(record, path, ["cxr_id"]).column("cxr_id").to_pylist())
    return ids


def unpack_masks(packed: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.bool_]:
    """Turn bit-packed masks into arrays.

    Args:
        packed: uint8 [N, K, ceil(S S / 8)].
        size: S, pixels of a side.

    Returns:
        bool [N, K, S, S].
    """
    bits = np.unpackbits(packed, axis=-1, count=size * size)
    return bits.reshape(*packed.shape[:2], size, size).astype(bool)


def accepted_ids(store: Store, record: Record) -> list[str]:
    """Read the cxr_ids of a record's masks.

    Args:
        store: holds the record's files.
        record: an images or pseudo_masks record.

    Returns:
        The cxr_ids, sorted.
    """
    return sorted(_recorded_ids(store, record, "masks/"))


def mask_sizes(store: Store, record: Record, wanted: set[str] | None = None) -> dict[str, tuple[int, int]]:
    """The original sizes of the images of a record's masks.

    Args:
        store: holds the record's files.
        record: an images or pseudo_masks record.
        wanted: the cxr_ids that are asked for; None asks for all.

    Returns:
        {cxr_id: (height, width)} in pixels.
    """
    rows = store.read_tables(record, "masks/", ["cxr_id", "height", "width"]).to_pylist()
    return {row["cxr_id"]: (row["height"], row["width"]) for row in rows if wanted is None or row["cxr_id"] in wanted}


def subset_key(masks: Record, seed: int, trial: int, weak_n: int) -> str:
    """The key under which a trial's weak subset is shared.

    Args:
        masks: the pseudo_masks record that it is drawn from.
        seed: the sweep's seed.
        trial: the trial's number.
        weak_n: size of the subset.
    """
    return f"{masks.address}/weak {seed} {trial} {weak_n}"


def shared_value(shared: Mapping[str, Any], key: str, load: Callable[[], T]) -> T:
    """Get a value that a sweep put into Ray's object store, or load it here when the sweep did not.

    Args:
        shared: references by key, as share_pool returns them.
        key: the value's key.
        load: loads it.
    """
    if key not in shared:
        return load()
    import ray

    value: T = ray.get(shared[key])
    return value


def shared_rows(shared: Mapping[str, Any], key: str, ids: Sequence[str], load: Callable[[], Rows]) -> Rows:
    """Get rows that a sweep put into Ray's object store, or load them here when the sweep did not.

    Args:
        shared: references by key, as share_pool returns them.
        key: the rows' key.
        ids: the wanted cxr_ids; only the chunks that hold one of them come to this node.
        load: loads the rows.
    """
    if key not in shared:
        return load()
    import ray

    index, references = shared[key]
    wanted = sorted({index[cxr_id] // CHUNK_ROWS for cxr_id in ids})
    chunks: list[npt.NDArray[np.uint8] | None] = [None] * len(references)
    for number, chunk in zip(wanted, ray.get([references[number] for number in wanted]), strict=True):
        chunks[number] = chunk
    return Rows(index, chunks)


def share_pool(store: Store, trainings: Sequence[Step]) -> dict[str, Any]:
    """Put what the waiting points draw from into Ray's object store, once: weak subsets, pixels, masks of each source.

    Rows of a subset lie together, a trial's smallest subset first, so that a trial fetches few rows that it does not
    need.

    Args:
        store: holds the steps that the points share.
        trainings: the waiting points' segmentation steps.

    Returns:
        References by key, as shared_rows and shared_value read them.
    """
    pool = _Pool(store)
    for step in sorted(trainings, key=lambda step: (step.config["trial"], step.config["weak_n"])):
        pool.want(step)
    return pool.share()


class _Pool:
    """What the waiting points want, and the references to what is shared already."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._records: dict[str, Record] = {}
        self._whole: set[str] = set()  # addresses whose rows are all wanted
        self._order: dict[str, dict[str, None]] = {}  # address: its wanted ids, in the order of their rows
        self._sizes: dict[str, dict[str, tuple[int, int]]] = {}
        self._accepted: dict[str, list[str]] = {}
        self._shared: dict[str, Any] = {}

    def want(self, step: Step) -> None:
        """Note what a segmentation step draws from; its weak subset is shared at once."""
        import ray

        for role in ("images_expert_train", "images_validation"):
            if role in step.inputs:
                self._whole.add(self._record(step.inputs[role]).address)
        if "pseudo_masks" not in step.inputs:
            return
        masks, images = self._record(step.inputs["pseudo_masks"]), self._record(step.inputs["images_weak"])
        if masks.address not in self._accepted:
            self._sizes[masks.address] = mask_sizes(self._store, masks)
            self._accepted[masks.address] = sorted(self._sizes[masks.address])
        accepted, weak_n = self._accepted[masks.address], step.config["weak_n"]
        seed, trial = step.config["sweep_seed"], step.config["trial"]
        key = subset_key(masks, seed, trial, weak_n)
        if key in self._shared or weak_n > len(accepted):
            return  # a size that is too large is reported by its own trial
        chosen = weak_subset(accepted, seed, trial, weak_n)
        self._shared[key] = ray.put(chosen)
        for record in (masks, images):
            self._order.setdefault(record.address, {}).update(dict.fromkeys(chosen))

    def share(self) -> dict[str, Any]:
        """Put the wanted rows into the object store; return all references by key."""
        for address in (*sorted(self._whole), *self._order):
            ids = None if address in self._whole else list(self._order[address])
            self._share_rows(self._records[address], ids)
        return self._shared

    def _share_rows(self, record: Record, ids: list[str] | None) -> None:
        """Share a record's pixels and masks, and the original sizes; of all its images where `ids` is None."""
        import ray

        if record.name == "images":
            self._put(f"{record.address}/images", load_pixels(self._store, record, ids))
        if record.paths("masks/"):
            self._put(f"{record.address}/masks", load_masks(self._store, record, record.config["size"], ids))
            sizes = self._sizes.get(record.address)
            if not sizes:
                sizes = mask_sizes(self._store, record)
            wanted = sizes if ids is None else {cxr_id: sizes[cxr_id] for cxr_id in ids}
            self._shared[f"{record.address}/sizes"] = ray.put(wanted)

    def _put(self, key: str, rows: Rows) -> None:
        """Share rows chunk by chunk, so that a trial fetches only the chunks that it needs."""
        import ray

        self._shared[key] = (rows.index, [ray.put(chunk) for chunk in rows.chunks])

    def _record(self, step: Step) -> Record:
        """The record of a step that the driver has built, read once."""
        if step.address not in self._records:
            record = self._store.find(step)
            assert record is not None, step.address
            self._records[step.address] = record
        return self._records[step.address]
