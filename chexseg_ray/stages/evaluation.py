"""Compare a trained network's masks of the test images with the expert masks.

The step takes the network and the thresholds of one sweep point, predicts every test image, and counts pixels at the
model's and at the original resolution. IoU is computed from these counts later, in the report.

INPUT   weights and thresholds of one segmentation record; the test split's manifest with masks at original resolution,
        and its images and masks at model resolution
OUTPUT  counts.parquet {cxr_id, patient_id, pathology, resolution: model | original, intersection, predicted, truth},
        the last three int64 in pixels; `predicted` is the network, `truth` the expert
FAN-OUT 2 K rows an image; a plain loop, inside the trial that trained the network
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from chexseg_ray.engine.execution import Made, Task
from chexseg_ray.engine.pool import load_masks, load_pixels, unpack_masks
from chexseg_ray.segmentation.inference import BATCH
from chexseg_ray.stages.counts import COUNTS, count_rows, originals
from chexseg_ray.stages.prediction import Settings, load_segmenter


def make(task: Task) -> Made:
    """Predict every test image and count pixels.

    Args:
        task: the step to make; its inputs are `segmentation`, `images_test` and `manifest_test`.

    Returns:
        counts.parquet; `rows` is 2 K for each test image. There are no metrics; `run` has the network's device.

    Raises:
        InputError, TransientError: an input cannot be read, as in Store.read.
    """
    settings, store, images = Settings(**task.step.config), task.store, task.inputs["images_test"]
    training = task.inputs["segmentation"]
    num_cpus, num_gpus = task.execution.compute.segmentation.of(training.config["weak_n"]).trial_bundle
    segmenter = load_segmenter(store, training, num_gpus)
    originals_by_id = originals(store, task.inputs["manifest_test"])
    pixels, masks = load_pixels(store, images), load_masks(store, images, settings.size)
    ids = sorted(pixels.index)
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor(max(1, int(num_cpus))) as threads:
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            sizes = [(originals_by_id[cxr_id]["height"], originals_by_id[cxr_id]["width"]) for cxr_id in batch]
            truths = unpack_masks(masks.gather(batch), settings.size)
            segmented = segmenter.letterboxed(pixels.gather(batch), sizes)
            for cxr_id, truth, found in zip(batch, truths, segmented, strict=True):
                image, model = originals_by_id[cxr_id], found.model_masks
                rows += count_rows(image, settings.pathologies, model, truth, found.mask, threads.map)
    table = pa.Table.from_pylist(rows, schema=COUNTS)
    return Made(
        [task.attempt.write_table("counts.parquet", table)], rows=len(rows), run={"device": str(segmenter.device)}
    )
