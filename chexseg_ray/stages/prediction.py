"""The masks that a chosen network gives the test images.

INPUT   weights and thresholds of one segmentation record; test images {cxr_id, height, width, pixels}
OUTPUT  predictions.json, CheXlocalize's exchange format: every image, all pathologies, at the original resolution;
        masks/ {cxr_id, height, width, rle[K]} at model resolution; probabilities.parquet {cxr_id, probability[K]}
FAN-OUT one row an image; actors that each hold the network, or a plain loop in a driver that trains by itself
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from chexseg_ray.artifacts import Attempt, FileEntry, Record, Store
from chexseg_ray.data.masks import encode_rle, exchange_entry, exchange_json
from chexseg_ray.segmentation.inference import Segmenter
from chexseg_ray.stages.counts import originals
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.grouped import Row, run_actors
from chexseg_ray.stages.segmentation import load_segmentation, threshold_array
from chexseg_ray.stages.tables import binary_column, mask_schema
from chexseg_ray.stages.train import training_device


def load_segmenter(store: Store, record: Record) -> Segmenter:
    """The network of a segmentation record, on the device that there is."""
    model, facts = load_segmentation(store, record)
    names, device = tuple(facts["pathologies"]), training_device()
    return Segmenter(model.to(device), names, threshold_array(record, names), facts["normalisation"], facts["size"], device)


def make(task: Task) -> Made:
    """Predict every test image."""
    images, resources = task.inputs["images_test"], task.execution.cams
    items = [{"group": i, "part": part} for i, part in enumerate(images.paths("images/"))]
    read, own = ReadImages(task.attempt, images), (task.attempt, task.inputs["segmentation"], max(1, int(resources.num_cpus)))
    if task.execution.classifier.num_workers == 0:
        actor = PredictActor(*own)
        rows = [actor(read(item)) for item in items]
    else:
        task.execution.start_ray()
        reading = task.execution.images_cpus if resources.num_gpus else resources.num_cpus
        rows = run_actors("prediction", ": groups of images predicted", items, read, PredictActor, own, resources, reading)
    entries = {cxr_id: entry for row in rows for cxr_id, entry in row["entries"].items()}
    for cxr_id, own_image in originals(task.store, task.inputs["manifest_test"]).items():
        if cxr_id not in entries:  # rejected, where the config allows it: no mask, as CheXlocalize counts an image that is missing
            nothing = np.zeros((len(task.step.config["pathologies"]), own_image["height"], own_image["width"]), dtype=bool)
            entries[cxr_id] = exchange_entry(task.step.config["pathologies"], nothing)
    entries = dict(sorted(entries.items()))
    probabilities = [{"cxr_id": cxr_id, "probability": own} for row in rows for cxr_id, own in row["probability"].items()]
    table = pa.Table.from_pylist(probabilities, schema=pa.schema([("cxr_id", pa.string()), ("probability", pa.list_(pa.float32()))]))
    files = [FileEntry(*row["file"]) for row in rows]
    files += [task.attempt.write("predictions.json", exchange_json(entries).encode()), task.attempt.write_table("probabilities.parquet", table)]
    return Made(files, rows=len(entries), run={"device": rows[0]["device"]})


@dataclass
class ReadImages:
    """Reads one image part's bytes, ahead of the actors."""

    attempt: Attempt
    images: Record

    def __call__(self, row: Row) -> Row:
        return {**row, "data": self.attempt.store.read(self.images, row["part"])}


class PredictActor:
    """Holds a network; predicts one group of images, in fixed batches."""

    def __init__(self, attempt: Attempt, segmentation: Record, threads: int) -> None:
        torch.set_num_threads(threads)
        self._attempt = attempt
        self._segmenter = load_segmenter(attempt.store, segmentation)

    def __call__(self, row: Row) -> Row:
        table = pq.read_table(io.BytesIO(row["data"]))
        size, names = self._segmenter.size, self._segmenter.pathologies
        sizes = list(zip(table.column("height").to_pylist(), table.column("width").to_pylist(), strict=True))
        ids, rows = table.column("cxr_id").to_pylist(), list[dict[str, Any]]()
        entries, probability = {}, {}
        found = self._segmenter.letterboxed(binary_column(table, "pixels", np.uint8, (size, size)), sizes)
        for cxr_id, (height, width), own in zip(ids, sizes, found, strict=True):
            rows.append({"cxr_id": cxr_id, "height": height, "width": width, "rle": [encode_rle(mask) for mask in own.model_masks]})
            entries[cxr_id], probability[cxr_id] = exchange_entry(names, own.masks), own.probability.tolist()
        part = pa.Table.from_pylist(rows, schema=mask_schema(names, size))
        entry = self._attempt.write_table(row["part"].replace("images/", "masks/"), part)
        file = [entry.path, entry.size, entry.sha256]
        return {"rows": len(ids), "file": file, "entries": entries, "probability": probability, "device": str(self._segmenter.device)}
