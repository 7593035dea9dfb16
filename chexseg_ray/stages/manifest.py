"""Read the sources of one split: who is in it, with which labels and expert masks. Runs in the driver, before Ray starts.

INPUT   CSV rows {Path, ..., labels}; mask JSON {cxr_id: {pathology: RLE}}
OUTPUT  manifest.parquet {cxr_id, patient_id, path, view, height, width, labels[K], rle_original[K]}, sorted by cxr_id
FAN-OUT one row an image of the split
"""

import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs

from chexseg_ray.data.chexpert import read_csv, refuse_shared_patients
from chexseg_ray.data.images import header_size
from chexseg_ray.data.masks import Rle, is_empty, read_mask_json
from chexseg_ray.data.splits import split_by_patient
from chexseg_ray.errors import InputError
from chexseg_ray.stages.execution import Made, Source, Task
from chexseg_ray.stages.tables import manifest_schema

Masks = dict[str, dict[str, Rle]]


def make(task: Task) -> Made:
    """Read, check and split."""
    config = task.step.config
    split, pathologies = config["split"], config["pathologies"]
    files = task.execution.files
    source = task.open_source()
    own_test = split == "test" and files["test_csv"] is not None
    csv_field = "weak_csv" if split == "weak" else "test_csv" if own_test else "expert_csv"
    name = files[csv_field]
    assert name is not None, csv_field
    columns = config.get("columns", {})
    table = read_csv(_read(source, name), name, pathologies, columns)
    _refuse_outside(source, name, table["path"])
    in_view = table["view"].isin(config["views"])
    masks: Masks = {}
    if split == "weak":
        table = table[in_view]
    else:
        masks_name = files["test_masks" if own_test else "expert_masks"]
        assert masks_name is not None
        masks = read_mask_json(_read(source, masks_name), masks_name, pathologies, columns)
        table = table[_annotated(table, masks, name, masks_name) & in_view]
        if not own_test:
            table = table[_expert_splits(table, masks, config) == split]
        _refuse_other_sizes(source, name, masks_name, table, masks)
    if table.empty:
        raise InputError(f"{name}: no image is left for the split {split!r}: check data.views, num_validation and num_test")
    table = table.sort_values("cxr_id")
    entry = task.attempt.write_table("manifest.parquet", _to_arrow(table, masks, pathologies))
    return Made([entry], rows=len(table), metrics=_summary(table, masks, pathologies))


def check_sources(source: Source, files: Mapping[str, str | None], pathologies: Sequence[str], columns: Mapping[str, Sequence[str]]) -> None:
    """What no single manifest sees: a patient in two of the CSV files.

    Raises:
        InputError: naming files and patients.
    """
    names = [name for field in ("weak_csv", "expert_csv", "test_csv") if (name := files[field]) is not None]
    refuse_shared_patients({name: read_csv(_read(source, name), name, pathologies, columns)["patient_id"] for name in names})


def _read(source: Source, name: str) -> bytes:
    try:
        return source.read(name)
    except FileNotFoundError:
        raise InputError(f"{source.base}/{name}: is no file: check data.root and the file names in the data section") from None


def _refuse_outside(source: Source, csv_name: str, paths: pd.Series) -> None:
    """On a local root, no row may reach outside through a link."""
    if not isinstance(source.filesystem, pafs.LocalFileSystem):
        return
    root = os.path.realpath(source.base)
    folder = str(Path(source.base) / Path(csv_name).parent)
    known = {folder: f"{os.path.realpath(folder)}{os.sep}".startswith(root + os.sep)}

    def inside(path: str) -> bool:
        """Each folder is looked at once, and followed only where it is a link."""
        name = folder
        for part in path.split("/"):
            above, name = name, f"{name}/{part}"
            if name not in known:
                known[name] = known[above] and (not os.path.islink(name) or f"{os.path.realpath(name)}{os.sep}".startswith(root + os.sep))
        return known[name]

    for row, path in enumerate(paths, start=2):
        if not inside(path):
            raise InputError(f"{csv_name} row {row}: Path {path!r} leads out of the data root through a link: copy the file into it")


def _refuse_other_sizes(source: Source, csv_name: str, masks_name: str, table: pd.DataFrame, masks: Masks) -> None:
    """Headers only; an image that is missing or broken is for stages.images to reject."""
    for cxr_id, path in zip(table["cxr_id"], table["path"], strict=True):
        rle = next(iter(masks[cxr_id].values()))
        try:
            size = header_size(BytesIO(source.read(f"{PurePosixPath(csv_name).parent}/{path}")))  # whole: a header is 20 reads of a few bytes
        except FileNotFoundError:
            continue
        if size is not None and size != (rle.height, rle.width):
            raise InputError(
                f"{masks_name}: {cxr_id!r}: its masks are {rle.height} x {rle.width} pixels, the image {size[0]} x {size[1]}: correct the file"
            )


def _annotated(table: pd.DataFrame, masks: Masks, csv_name: str, masks_name: str) -> pd.Series:
    """Which rows have masks."""
    unknown = sorted(set(masks) - set(table["cxr_id"]))
    if unknown:
        raise InputError(f"{masks_name}: {len(unknown)} ids are not in {csv_name}, first {unknown[0]!r}: correct the file")
    return table["cxr_id"].isin(masks.keys())


def _expert_splits(table: pd.DataFrame, masks: Masks, config: Mapping[str, Any]) -> npt.NDArray[np.object_]:
    """The test images first, stratified by the CSV's labels, so that no test mask has a say in the others' split; the rest by masks."""
    patients, seed = list(table["patient_id"]), int(config["split_seed"])
    validation, test = float(config["num_validation"]), float(config["num_test"] or 0)
    if len(table) - validation - test < 1:
        raise InputError(f"{len(table)} annotated images cannot give {validation:g} for validation and {test:g} for test: ask for fewer")
    out = np.full(len(table), "test", dtype=object)
    labels = (table[list(config["pathologies"])] == 1).to_numpy(dtype=bool)
    rest = np.ones(len(table), dtype=bool)
    if test:
        rest = split_by_patient(patients, labels, {"test": test, "rest": len(table) - test}, seed) == "rest"
    own = table[rest]
    positives = np.array([[not is_empty(masks[i][name]) for name in config["pathologies"]] for i in own["cxr_id"]], dtype=bool)
    sizes = {"validation": validation, "expert_train": len(own) - validation}
    out[rest] = split_by_patient(list(own["patient_id"]), positives, sizes, seed)
    return out


def _to_arrow(table: pd.DataFrame, masks: Masks, pathologies: Sequence[str]) -> pa.Table:
    matrix = table[list(pathologies)].to_numpy(dtype=np.float64)
    own = [masks.get(cxr_id) for cxr_id in table["cxr_id"]]
    sizes = [next(iter(m.values())) if m else None for m in own]
    columns = {name: list(table[name]) for name in ("cxr_id", "patient_id", "path", "view")} | {
        "height": [size.height if size else None for size in sizes],
        "width": [size.width if size else None for size in sizes],
        "labels": [[None if np.isnan(v) else int(v) for v in line] for line in matrix],
        "rle_original": [[m[name].counts for name in pathologies] if m else None for m in own],
    }
    return pa.table(columns, schema=manifest_schema(pathologies))


def _summary(table: pd.DataFrame, masks: Masks, pathologies: Sequence[str]) -> dict[str, object]:
    positive = {name: int((table[name] == 1).sum()) for name in pathologies}
    annotated = {name: sum(not is_empty(masks[i][name]) for i in table["cxr_id"]) for name in pathologies} if masks else {}
    return {"patients": int(table["patient_id"].nunique()), "positive_labels": positive, "positive_masks": annotated}
