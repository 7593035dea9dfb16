"""Compare a trained network with the test split's expert masks.

INPUT   weights and thresholds of one segmentation record; test images, their masks at model and original resolution
OUTPUT  counts.parquet {cxr_id, patient_id, pathology, resolution: model | original, intersection, predicted, truth}
FAN-OUT 2 K rows an image; a plain loop, inside the trial that trained
"""

from typing import Any

import pyarrow as pa

from chexseg_ray.data.images import unletterbox
from chexseg_ray.segmentation.training import predict
from chexseg_ray.stages.counts import COUNTS, count_rows, originals
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.pool import load_masks, load_pixels, unpack_masks
from chexseg_ray.stages.segmentation import load_segmentation, threshold_array
from chexseg_ray.stages.train import training_device

_BATCH = 8


def make(task: Task) -> Made:
    """Predict every test image and count pixels."""
    store, size = task.store, task.step.config["size"]
    record, images = task.inputs["segmentation"], task.inputs["images_test"]
    names = task.step.config["pathologies"]
    model, facts = load_segmentation(store, record)
    device = training_device()
    model = model.to(device)
    thresholds = threshold_array(record, names)[:, None, None]
    found = originals(store, task.inputs["manifest_test"])
    pixels, masks = load_pixels(store, images), load_masks(store, images, size)
    ids = sorted(pixels.index)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        scores = predict(model, pixels.gather(batch), facts["normalisation"], device)
        truth = unpack_masks(masks.gather(batch), size)
        for i, cxr_id in enumerate(batch):
            own = found[cxr_id]
            whole = unletterbox(scores[i], own["height"], own["width"]) > thresholds
            rows += count_rows(own, names, scores[i] > thresholds, truth[i], whole)
    table = pa.Table.from_pylist(rows, schema=COUNTS)
    return Made([task.attempt.write_table("counts.parquet", table)], rows=len(rows), run={"device": str(device)})
