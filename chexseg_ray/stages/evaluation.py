"""Compare a trained network with the test split's expert masks.

INPUT   weights and thresholds of one segmentation record; test images, their masks at model and original resolution
OUTPUT  counts.parquet {cxr_id, patient_id, pathology, resolution: model | original, intersection, predicted, truth}
FAN-OUT 2 K rows an image; a plain loop, inside the trial that trained
"""

from typing import Any

import pyarrow as pa

from chexseg_ray.segmentation.inference import BATCH
from chexseg_ray.stages.counts import COUNTS, count_rows, originals
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.pool import load_masks, load_pixels, unpack_masks
from chexseg_ray.stages.prediction import load_segmenter


def make(task: Task) -> Made:
    """Predict every test image and count pixels."""
    store, size, names = task.store, task.step.config["size"], task.step.config["pathologies"]
    images = task.inputs["images_test"]
    segmenter = load_segmenter(store, task.inputs["segmentation"])
    found = originals(store, task.inputs["manifest_test"])
    pixels, masks = load_pixels(store, images), load_masks(store, images, size)
    ids = sorted(pixels.index)
    rows: list[dict[str, Any]] = []
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        sizes = [(found[cxr_id]["height"], found[cxr_id]["width"]) for cxr_id in batch]
        truth = unpack_masks(masks.gather(batch), size)
        predicted = segmenter.letterboxed(pixels.gather(batch), sizes)
        for cxr_id, true, own in zip(batch, truth, predicted, strict=True):
            rows += count_rows(found[cxr_id], names, own.model_masks, true, own.masks)
    table = pa.Table.from_pylist(rows, schema=COUNTS)
    return Made([task.attempt.write_table("counts.parquet", table)], rows=len(rows), run={"device": str(segmenter.device)})
