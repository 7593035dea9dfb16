"""Compare another reader's masks with the test split's expert masks, as predictions are compared.

INPUT   a CheXlocalize segmentation or annotation file (data.benchmark_masks); test images, their masks at model and original resolution
OUTPUT  counts.parquet {cxr_id, patient_id, pathology, resolution: model | original, intersection, predicted, truth}
FAN-OUT 2 K rows an image; one task a group of images; CPU only
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chexseg_ray.artifacts import Record, Store
from chexseg_ray.data.images import letterbox_mask
from chexseg_ray.data.masks import Rle, decode_rle, read_mask_json
from chexseg_ray.errors import InputError
from chexseg_ray.stages.counts import COUNTS, count_rows, originals
from chexseg_ray.stages.execution import Made, Source, Task
from chexseg_ray.stages.grouped import Row, group_slices, run_tasks
from chexseg_ray.stages.pool import load_masks, unpack_masks

_GROUP = 32  # images whose masks at original resolution are counted by one task: a minute at CheXpert's sizes


def make(task: Task) -> Made:
    """Read, check and count. An image that the file lacks counts as one without a mask, as CheXlocalize does; the record says how many."""
    names, manifest = task.step.config["pathologies"], task.inputs["manifest_test"]
    found = read_benchmark(task.open_source(), task.execution.files["benchmark_masks"], task.step.config, task.store, manifest)
    ids = sorted(task.store.read_tables(task.inputs["images_test"], "masks/", ["cxr_id"]).column("cxr_id").to_pylist())
    task.execution.start_ray()
    slices = group_slices(len(ids), _GROUP)
    counts = {cxr_id: [found[cxr_id][name].counts if cxr_id in found else "" for name in names] for cxr_id in ids}
    items = [{"group": i, "counts": json.dumps({cxr_id: counts[cxr_id] for cxr_id in ids[part]})} for i, part in enumerate(slices)]
    work = partial(_count, store=task.store, manifest=manifest, images=task.inputs["images_test"], names=names, size=task.step.config["size"])
    results = run_tasks("benchmark", ": groups of images compared", items, work, task.execution.images_cpus)
    rows = [row for result in results for row in result["counts"]]
    absent = [cxr_id for cxr_id in ids if cxr_id not in found]
    metrics = {"images": len(ids), "absent": len(absent), "not_in_test": len(set(found) - set(ids))}
    return Made([task.attempt.write_table("counts.parquet", pa.Table.from_pylist(rows, schema=COUNTS))], rows=len(rows), metrics=metrics)


def read_benchmark(source: Source, name: str | None, config: Mapping[str, Any], store: Store, manifest: Record) -> dict[str, dict[str, Rle]]:
    """The file's masks, checked against the test split.

    Raises:
        InputError: it is not there, not CheXlocalize's, about other images, or of other sizes.
    """
    assert name is not None
    try:
        found = read_mask_json(source.read(name), name, config["pathologies"], config.get("columns", {}))
    except FileNotFoundError:
        raise InputError(f"{source.base}/{name}: is no file: check data.root and data.benchmark_masks, or set it to null") from None
    _refuse_other_sizes(found, originals(store, manifest), name)
    return found


def _refuse_other_sizes(found: Mapping[str, Mapping[str, Rle]], own: Mapping[str, Row], name: str) -> None:
    if not set(found) & set(own):
        raise InputError(f"{name}: has masks of none of the {len(own)} test images: correct data.benchmark_masks")
    for cxr_id in sorted(set(found) & set(own)):
        rle = next(iter(found[cxr_id].values()))
        if (rle.height, rle.width) != (own[cxr_id]["height"], own[cxr_id]["width"]):
            size = f"{own[cxr_id]['height']} x {own[cxr_id]['width']}"
            raise InputError(f"{name}: {cxr_id!r}: its masks are {rle.height} x {rle.width} pixels, the expert's {size}: correct the file")


def _count(row: Row, store: Store, manifest: Record, images: Record, names: list[str], size: int) -> Row:
    wanted = originals(store, manifest)
    found = json.loads(row["counts"])
    truth = load_masks(store, images, size, list(found))
    counts: list[Row] = []
    for cxr_id, rles in found.items():
        own = wanted[cxr_id]
        whole = np.stack([_mask(own["height"], own["width"], text) for text in rles])
        small = np.stack([letterbox_mask(mask, size) for mask in whole])
        counts += count_rows(own, names, small, unpack_masks(truth.gather([cxr_id]), size)[0], whole)
    return {"rows": len(found), "counts": counts}


def _mask(height: int, width: int, counts: str) -> npt.NDArray[np.bool_]:
    return decode_rle(Rle(height, width, counts)) if counts else np.zeros((height, width), dtype=bool)
