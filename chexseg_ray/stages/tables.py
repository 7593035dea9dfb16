"""The Parquet tables between stages: plain Arrow types, so that pandas and DuckDB read them without Ray."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from chexseg_ray.artifacts import Attempt, FileEntry, Record, Store

GROUP_ROWS = 128  # rows of one part file, and of one task

REJECTS = pa.schema([("cxr_id", pa.string()), ("path", pa.string()), ("stage", pa.string()), ("reason", pa.string())])


def manifest_schema(pathologies: Sequence[str]) -> pa.Schema:
    """{cxr_id, patient_id, path, view, height, width, labels int8[K], rle_original string[K]}; null where unknown."""
    fields = [("cxr_id", pa.string()), ("patient_id", pa.string()), ("path", pa.string()), ("view", pa.string())]
    fields += [("height", pa.int32()), ("width", pa.int32()), ("labels", pa.list_(pa.int8())), ("rle_original", pa.list_(pa.string()))]
    return pa.schema(fields, metadata={"pathologies": json.dumps(list(pathologies))})


def image_schema(size: int) -> pa.Schema:
    """{cxr_id, height, width, pixels u8[size, size], sha256 of the file}."""
    fields = [("cxr_id", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("pixels", pa.binary(size * size))]
    return pa.schema([*fields, ("sha256", pa.string())], metadata={"pixels": json.dumps([size, size])})


def mask_schema(pathologies: Sequence[str], size: int) -> pa.Schema:
    """{cxr_id, height, width, rle string[K]}: masks of size x size pixels; height and width are the original's."""
    fields = [("cxr_id", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("rle", pa.list_(pa.string()))]
    return pa.schema(fields, metadata={"pathologies": json.dumps(list(pathologies)), "size": json.dumps([size, size])})


def cam_schema(pathologies: Sequence[str], grid: Sequence[int]) -> pa.Schema:
    """{cxr_id, height, width, probability f32[K], cam f16[K, h, w]}."""
    fields = [("cxr_id", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("probability", pa.list_(pa.float32()))]
    shape = [len(pathologies), *grid]
    metadata = {"pathologies": json.dumps(list(pathologies)), "cam": json.dumps([*shape, "float16"])}
    return pa.schema([*fields, ("cam", pa.binary(2 * int(np.prod(shape))))], metadata=metadata)


def part_name(folder: str, group: int) -> str:
    """The path of a group's part file."""
    return f"{folder}/part-{group:05d}.parquet"


def write_rejects(attempt: Attempt, rejects: Sequence[Mapping[str, str]]) -> FileEntry:
    """rejects.parquet, sorted by cxr_id; there even when empty."""
    rows = sorted(rejects, key=lambda row: row["cxr_id"])
    return attempt.write_table("rejects.parquet", pa.Table.from_pylist([dict(row) for row in rows], schema=REJECTS))


def binary_column(table: pa.Table, name: str, dtype: npt.DTypeLike, shape: Sequence[int]) -> npt.NDArray[Any]:
    """A fixed-size binary column as an array [N, *shape], copied out of Arrow."""
    data = b"".join(table.column(name).to_pylist())
    return np.frombuffer(bytearray(data), dtype=dtype).reshape(len(table), *shape)


def split_cams(table: pa.Table) -> tuple[pa.Table, npt.NDArray[np.float16]]:
    """A table of CAMs without its maps, and the maps float16 [N, K, h, w]."""
    shape = json.loads(table.schema.metadata[b"cam"])[:3]
    return table.drop_columns(["cam"]), binary_column(table, "cam", np.float16, shape)


def join_cams(table: pa.Table, maps: npt.NDArray[np.float16], pathologies: Sequence[str]) -> pa.Table:
    """The inverse: {cxr_id, height, width, probability} with maps float16 [N, K, h, w] as the `cam` column."""
    schema = cam_schema(pathologies, maps.shape[2:])
    return table.append_column("cam", pa.array([m.tobytes() for m in maps], type=schema.field("cam").type)).cast(schema)


def read_manifest(store: Store, record: Record) -> pd.DataFrame:
    """The rows of one split, in id order, without the original-size masks."""
    columns = [c for c in manifest_schema([]).names if c != "rle_original"]
    table: pd.DataFrame = store.read_table(record, "manifest.parquet", columns).to_pandas()
    return table


def labels_by_id(manifest: pd.DataFrame) -> dict[str, Sequence[float | None]]:
    """{cxr_id: labels as the CSV has them}."""
    return dict(zip(manifest["cxr_id"], manifest["labels"], strict=True))


def label_matrix(manifest: pd.DataFrame, ids: Sequence[str]) -> npt.NDArray[np.float64]:
    """Labels float64 [N, K] of the ids: 1, 0, -1 (uncertain), NaN (blank)."""
    labels = labels_by_id(manifest)
    return np.array([[np.nan if v is None else v for v in labels[cxr_id]] for cxr_id in ids], dtype=np.float64)
