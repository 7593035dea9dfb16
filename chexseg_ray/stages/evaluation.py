"""Compare a trained network with the test split's expert masks.

INPUT   weights and thresholds of one segmentation record; test images, their masks at model and original resolution
OUTPUT  counts.parquet {cxr_id, patient_id, pathology, resolution: model | original, intersection, predicted, truth}
FAN-OUT 2 K rows an image; a plain loop, inside the trial that trained
"""

from typing import Any

import numpy as np
import pyarrow as pa

from chexseg_ray.data.images import content_box, unletterbox
from chexseg_ray.data.masks import Rle, decode_rle
from chexseg_ray.evaluation.iou import mask_counts
from chexseg_ray.segmentation.training import predict
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.pool import load_masks, load_pixels, unpack_masks
from chexseg_ray.stages.segmentation import load_segmentation
from chexseg_ray.stages.train import training_device

COUNTS = pa.schema(
    [(name, pa.string()) for name in ("cxr_id", "patient_id", "pathology", "resolution")]
    + [(name, pa.int64()) for name in ("intersection", "predicted", "truth")]
)
_BATCH = 8


def make(task: Task) -> Made:
    """Predict every test image and count pixels."""
    store, size = task.store, task.step.config["size"]
    record, images = task.inputs["segmentation"], task.inputs["images_test"]
    names = task.step.config["pathologies"]
    model, facts = load_segmentation(store, record)
    device = training_device()
    model = model.to(device)
    thresholds = np.array([record.metrics["thresholds"][name]["threshold"] for name in names], dtype=np.float32)
    columns = ["cxr_id", "patient_id", "height", "width", "rle_original"]
    originals = {r["cxr_id"]: r for r in store.read_table(task.inputs["manifest_test"], "manifest.parquet", columns).to_pylist()}
    pixels, masks = load_pixels(store, images), load_masks(store, images, size)
    ids = sorted(pixels.index)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        scores = predict(model, pixels.gather(batch), facts["normalisation"], device)
        truth = unpack_masks(masks.gather(batch), size)
        for i, cxr_id in enumerate(batch):
            rows += _rows(originals[cxr_id], names, scores[i], truth[i], thresholds)
    table = pa.Table.from_pylist(rows, schema=COUNTS)
    return Made([task.attempt.write_table("counts.parquet", table)], rows=len(rows), run={"device": str(device)})


def _rows(original: dict[str, Any], names: list[str], scores: Any, truth: Any, thresholds: Any) -> list[dict[str, Any]]:
    height, width = original["height"], original["width"]
    box = content_box(height, width, scores.shape[-1])
    cut = thresholds[:, None, None]
    model = mask_counts(scores[:, box.rows, box.columns] > cut, truth[:, box.rows, box.columns])
    full = np.stack([decode_rle(Rle(height, width, counts)) for counts in original["rle_original"]])
    whole = mask_counts(unletterbox(scores, height, width) > cut, full)
    identity = {"cxr_id": original["cxr_id"], "patient_id": original["patient_id"]}
    return [
        identity | {"pathology": name, "resolution": resolution, "intersection": int(i), "predicted": int(p), "truth": int(t)}
        for resolution, counts in (("model", model), ("original", whole))
        for name, (i, p, t) in zip(names, counts, strict=True)
    ]
