"""The Parquet tables between stages: plain Arrow types, so that pandas and DuckDB read them without Ray."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from chexseg_ray.store.step import FileEntry, Record
from chexseg_ray.store.store import Attempt, Store

GROUP_ROWS = 128  # rows of one part file, and of one task

REJECTS = pa.schema([("cxr_id", pa.string()), ("path", pa.string()), ("stage", pa.string()), ("reason", pa.string())])


def manifest_schema(pathologies: Sequence[str]) -> pa.Schema:
    """The columns of a manifest; null where a value is not known.

    {cxr_id, patient_id, path, view, height, width, labels int8[K], rle_original string[K]}

    Args:
        pathologies: K names.
    """
    fields = [
        ("cxr_id", pa.string()),
        ("patient_id", pa.string()),
        ("path", pa.string()),
        ("view", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("labels", pa.list_(pa.int8())),
        ("rle_original", pa.list_(pa.string())),
    ]
    return pa.schema(fields, metadata={"pathologies": json.dumps(list(pathologies))})


def image_schema(size: int) -> pa.Schema:
    """The columns of decoded images: {cxr_id, height, width, pixels uint8[S, S], sha256 of the file}.

    Args:
        size: S, pixels of a side; height and width are the original's.
    """
    fields = [
        ("cxr_id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("pixels", pa.binary(size * size)),
        ("sha256", pa.string()),
    ]
    return pa.schema(fields, metadata={"pixels": json.dumps([size, size])})


def mask_schema(pathologies: Sequence[str], size: int) -> pa.Schema:
    """The columns of masks: {cxr_id, height, width, rle string[K]}.

    Args:
        pathologies: K names.
        size: pixels of a side of the masks; height and width are the original's.
    """
    fields = [("cxr_id", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("rle", pa.list_(pa.string()))]
    return pa.schema(fields, metadata={"pathologies": json.dumps(list(pathologies)), "size": json.dumps([size, size])})


def cam_schema(pathologies: Sequence[str], grid: Sequence[int]) -> pa.Schema:
    """The columns of CAMs: {cxr_id, height, width, probability float32[K], cam float16[K, h, w]}.

    Args:
        pathologies: K names.
        grid: (h, w) of the maps.
    """
    shape = [len(pathologies), *grid]
    fields = [
        ("cxr_id", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("probability", pa.list_(pa.float32())),
        ("cam", pa.binary(2 * int(np.prod(shape)))),
    ]
    metadata = {"pathologies": json.dumps(list(pathologies)), "cam": json.dumps([*shape, "float16"])}
    return pa.schema(fields, metadata=metadata)


def part_name(folder: str, group: int) -> str:
    """Return the path of the part file of group number `group` in `folder`."""
    return f"{folder}/part-{group:05d}.parquet"


def write_rejects(attempt: Attempt, rejects: Sequence[Mapping[str, str]]) -> FileEntry:
    """Write rejects.parquet, sorted by cxr_id, also when there are none.

    Args:
        attempt: where it is written.
        rejects: rows {cxr_id, path, stage, reason}.
    """
    rows = sorted(rejects, key=lambda row: row["cxr_id"])
    return attempt.write_table("rejects.parquet", pa.Table.from_pylist([dict(row) for row in rows], schema=REJECTS))


def binary_column(table: pa.Table, name: str, dtype: npt.DTypeLike, shape: Sequence[int]) -> npt.NDArray[Any]:
    """Copy a fixed-size binary column out of Arrow.

    Args:
        table: N rows.
        name: the column's name.
        dtype: the array's dtype.
        shape: the shape of one row.

    Returns:
        A writable array [N, *shape].
    """
    column = table.column(name).combine_chunks()
    width = column.type.byte_width
    bytes_of_rows = np.frombuffer(column.buffers()[1], np.uint8, len(table) * width, column.offset * width)
    return bytes_of_rows.copy().view(dtype).reshape(len(table), *shape)


def split_cams(table: pa.Table) -> tuple[pa.Table, npt.NDArray[np.float16]]:
    """Take the maps out of a table of CAMs.

    Args:
        table: N rows of cam_schema.

    Returns:
        The table without its maps, and the maps float16 [N, K, h, w].
    """
    shape = json.loads(table.schema.metadata[b"cam"])[:3]
    return table.drop_columns(["cam"]), binary_column(table, "cam", np.float16, shape)


def join_cams(table: pa.Table, maps: npt.NDArray[np.float16], pathologies: Sequence[str]) -> pa.Table:
    """Put maps back into a table of CAMs: the inverse of split_cams.

    Args:
        table: N rows {cxr_id, height, width, probability}.
        maps: float16 [N, K, h, w].
        pathologies: K names.

    Returns:
        A table of cam_schema.
    """
    schema = cam_schema(pathologies, maps.shape[2:])
    column = pa.array([cams.tobytes() for cams in maps], type=schema.field("cam").type)
    return table.append_column("cam", column).cast(schema)


def read_manifest(store: Store, record: Record) -> pd.DataFrame:
    """Read the rows of one split, in id order, without the masks of original size.

    Args:
        store: holds the record's files.
        record: the split's manifest record.
    """
    columns = [name for name in manifest_schema([]).names if name != "rle_original"]
    table: pd.DataFrame = store.read_table(record, "manifest.parquet", columns).to_pandas()
    return table


def labels_by_id(manifest: pd.DataFrame) -> dict[str, Sequence[float | None]]:
    """The labels of each image by cxr_id: K values 1, 0, -1 (uncertain) or blank (NaN or None).

    Args:
        manifest: rows of read_manifest.
    """
    return dict(zip(manifest["cxr_id"], manifest["labels"], strict=True))


def label_matrix(manifest: pd.DataFrame, ids: Sequence[str]) -> npt.NDArray[np.float64]:
    """The labels of some images.

    Args:
        manifest: rows of read_manifest.
        ids: N cxr_ids among them.

    Returns:
        float64 [N, K]: 1, 0, -1 (uncertain) or NaN (blank), in the order of the ids.
    """
    labels = labels_by_id(manifest)
    rows = [[np.nan if label is None else label for label in labels[cxr_id]] for cxr_id in ids]
    return np.array(rows, dtype=np.float64)
