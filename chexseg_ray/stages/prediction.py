"""Predict the masks of the test images with the network of a chosen sweep point.

The step takes a trained network with its thresholds and the test images. It writes the masks in full, at both
resolutions, and a probability for each pathology. Every image of the test split's manifest is in predictions.json: one
that was rejected has empty masks there, as CheXlocalize counts an image that is missing in a file.

INPUT   weights and thresholds of one segmentation record; the test split's manifest, and its images {cxr_id, height,
        width, pixels}
OUTPUT  predictions.json, CheXlocalize's exchange format {cxr_id: {pathology: {size, counts}}}, at original resolution;
        masks/part-*.parquet {cxr_id, height, width, rle[K]}, at model resolution;
        probabilities.parquet {cxr_id, probability float32[K]}, each the highest score in the X-ray, in [0, 1]
FAN-OUT one row an image; actors that each hold the network, or a plain loop in the driver
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from chexseg_ray.config.resources import ActorCompute
from chexseg_ray.data.masks import encode_rle, exchange_entry, exchange_json
from chexseg_ray.engine.devices import device_for
from chexseg_ray.engine.execution import Made, Task
from chexseg_ray.engine.grouped import Row, files_of, run_actors
from chexseg_ray.engine.tables import binary_column, mask_schema
from chexseg_ray.segmentation.inference import Segmenter
from chexseg_ray.stages.counts import originals
from chexseg_ray.stages.networks import load_segmentation, threshold_array
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Attempt, Store

_PROBABILITIES = pa.schema([("cxr_id", pa.string()), ("probability", pa.list_(pa.float32()))])


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that determine predictions, and evaluations, whose config they share: the step's hashed config.

    Args:
        pathologies: K names, in channel order.
        size: S, pixels of a side at model resolution.
    """

    pathologies: Sequence[str]
    size: int


def load_segmenter(store: Store, record: Record, num_gpus: float) -> Segmenter:
    """Load the network of a segmentation record with its thresholds, onto this process's device.

    Args:
        store: holds the record's files.
        record: the segmentation record.
        num_gpus: GPUs that this process asked for.
    """
    model, facts = load_segmentation(store, record)
    names, device = tuple(facts["pathologies"]), device_for(num_gpus)
    thresholds = threshold_array(record, names)
    return Segmenter(model.to(device), names, thresholds, facts["normalisation"], facts["size"], device)


def make(task: Task) -> Made:
    """Predict every test image, in actors if `compute.prediction` asks for some, otherwise in this process.

    Args:
        task: the step to make; its inputs are `segmentation`, `images_test` and `manifest_test`.

    Returns:
        The part files of masks, predictions.json and probabilities.parquet; `rows` counts the test images. There are no
        metrics; `run` has the network's device.

    Raises:
        InputError, TransientError: as run_actors; an input cannot be read, as in Store.read.
    """
    settings, images, compute = Settings(**task.step.config), task.inputs["images_test"], task.execution.compute
    resources = compute.prediction
    read, arguments = ReadImages(task.attempt, images), (task.attempt, task.inputs["segmentation"], resources)
    parts = images.paths("images/")
    if resources.max_actors:
        task.execution.start_ray()
        cpus = compute.images.num_cpus
        what = ": groups of images predicted"
        same = compute.deterministic
        results = run_actors("prediction", what, parts, read, PredictActor, arguments, resources, cpus, same)
    else:
        actor = PredictActor(*arguments)
        results = [actor(part, read(part)) for part in parts]
    entries = {cxr_id: entry for result in results for cxr_id, entry in result["entries"].items()}
    for cxr_id, image in originals(task.store, task.inputs["manifest_test"]).items():
        if cxr_id not in entries:  # a rejected image, where the config allows these
            empty = np.zeros((len(settings.pathologies), image["height"], image["width"]), dtype=bool)
            entries[cxr_id] = exchange_entry(settings.pathologies, empty)
    entries = dict(sorted(entries.items()))
    probabilities = []
    for result in results:
        for cxr_id, scores in result["probability"].items():
            probabilities.append({"cxr_id": cxr_id, "probability": scores})
    table = pa.Table.from_pylist(probabilities, schema=_PROBABILITIES)
    files = files_of(results)
    files.append(task.attempt.write("predictions.json", exchange_json(entries).encode()))
    files.append(task.attempt.write_table("probabilities.parquet", table))
    return Made(files, rows=len(entries), run={"device": results[0]["device"]})


@dataclass
class ReadImages:
    """Reads the bytes of part files of images, ahead of the actors.

    Args:
        attempt: gives the store.
        images: the record of the test images.
    """

    attempt: Attempt
    images: Record

    def __call__(self, part: str) -> list[bytes]:
        """Read the bytes of one file; `part` is its path."""
        return [self.attempt.store.read(self.images, part)]


class PredictActor:
    """Holds a network, and predicts the masks of one part file of images at a time, in fixed batches.

    Args:
        attempt: where the masks are written.
        segmentation: the segmentation record.
        resources: what the actor asked Ray for.
    """

    def __init__(self, attempt: Attempt, segmentation: Record, resources: ActorCompute) -> None:
        """Load the network onto the actor's device."""
        torch.set_num_threads(resources.threads)
        self._attempt = attempt
        self._segmenter = load_segmenter(attempt.store, segmentation, resources.num_gpus)

    def __call__(self, part: str, files: list[bytes]) -> Row:
        """Predict the images of one part file, and write their masks at model resolution.

        Args:
            part: the path of the file of images.
            files: the bytes that ReadImages read.

        Returns:
            {rows, files, entries, probability, device}; entries are CheXlocalize's, by cxr_id, and probability is a
            list of K values by cxr_id.
        """
        table = pq.read_table(io.BytesIO(files[0]))
        size, names = self._segmenter.size, self._segmenter.pathologies
        sizes = list(zip(table.column("height").to_pylist(), table.column("width").to_pylist(), strict=True))
        rows: list[dict[str, Any]] = []
        entries, probability = {}, {}
        segmented = self._segmenter.letterboxed(binary_column(table, "pixels", np.uint8, (size, size)), sizes)
        for cxr_id, (height, width), found in zip(table.column("cxr_id").to_pylist(), sizes, segmented, strict=True):
            rles = [encode_rle(mask) for mask in found.model_masks]
            rows.append({"cxr_id": cxr_id, "height": height, "width": width, "rle": rles})
            entries[cxr_id] = exchange_entry(names, found.masks)
            probability[cxr_id] = found.probability.tolist()
        masks = pa.Table.from_pylist(rows, schema=mask_schema(names, size))
        entry = self._attempt.write_table(part.replace("images/", "masks/"), masks)
        device = str(self._segmenter.device)
        return {"rows": len(rows), "files": [entry], "entries": entries, "probability": probability, "device": device}
