"""Grad-CAM maps of all pathologies for the weak images, and for the expert training images that thresholds are tuned on.

INPUT   images {cxr_id, height, width, pixels}; a classifier's weights
OUTPUT  cams/{split}/part-*.parquet {cxr_id, height, width, probability f32[K], cam f16[K, h, w]}; 2 kB a row at 320 px
FAN-OUT one row an image; actors with a model each, CPU or GPU
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from chexseg_ray.artifacts import Attempt, FileEntry, Record
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.pseudo.classifier import probabilities
from chexseg_ray.pseudo.gradcam import grad_cam
from chexseg_ray.stages.classifier import load_classifier
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.grouped import Row, run_actors
from chexseg_ray.stages.tables import binary_column, join_cams
from chexseg_ray.stages.train import training_device


def make(task: Task) -> Made:
    """Stream the image parts through a pool of actors."""
    task.execution.start_ray()
    config = dict(task.step.config)
    images = {split: task.inputs[f"images_{split}"] for split in config["splits"]}
    parts = [(split, part) for split, record in images.items() for part in record.paths("images/")]
    items = [{"group": i, "split": split, "part": part} for i, (split, part) in enumerate(parts)]
    size = int(task.inputs["classifier"].config["size"])
    resources = task.execution.cams
    rows = run_actors(
        "cams",
        ": groups mapped",
        items,
        ReadPart(task.attempt, images),
        CamActor,
        (task.attempt, task.inputs["classifier"], config, size, max(1, int(resources.num_cpus))),
        resources,
        task.execution.images_cpus if resources.num_gpus else resources.num_cpus,  # equal on CPUs: Ray Data fuses both into the actor
    )
    files = [FileEntry(*row["file"]) for row in rows]
    return Made(files, rows=sum(int(row["rows"]) for row in rows), run={"device": rows[0]["device"]})


@dataclass
class ReadPart:
    """Reads one image part's bytes, ahead of the actors."""

    attempt: Attempt
    images: dict[str, Record]

    def __call__(self, row: Row) -> Row:
        return {**row, "data": self.attempt.store.read(self.images[row["split"]], row["part"])}


class CamActor:
    """Holds a classifier; maps one group of images, in fixed batches."""

    def __init__(self, attempt: Attempt, classifier: Record, config: dict[str, Any], size: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._attempt, self._config, self._size = attempt, config, size
        self._device = training_device()
        model, self._facts = load_classifier(attempt.store, classifier)
        self._model = model.to(self._device)

    def __call__(self, row: Row) -> Row:
        table = pq.read_table(pa.BufferReader(row["data"]))
        pixels = binary_column(table, "pixels", np.uint8, (self._size, self._size))
        scores, maps = self.map(pixels)
        out = table.select(["cxr_id", "height", "width"])
        out = out.append_column("probability", pa.array(list(scores), type=pa.list_(pa.float32())))
        out = join_cams(out, maps, self._config["pathologies"])
        entry = self._attempt.write_table(row["part"].replace("images/", f"cams/{row['split']}/"), out)
        return {"rows": len(out), "file": [entry.path, entry.size, entry.sha256], "device": str(self._device)}

    def map(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[Any, Any]:
        """Probabilities float32 [N, K] and maps float16 [N, K, h, w] of uint8 [N, S, S]."""
        count, batch = len(self._config["pathologies"]), self._config["batch_size"]
        scores, maps = [], []
        for start in range(0, len(pixels), batch):
            images = network_input(torch.tensor(pixels[start : start + batch]).to(self._device), self._facts["normalisation"])
            logits, cams = grad_cam(self._model, images, count, self._config["variant"], self._config["fine_grid"])
            scores.append(probabilities(logits, count).cpu().numpy().astype(np.float32))
            maps.append(cams.cpu().numpy().astype(np.float16))
        return np.concatenate(scores), np.concatenate(maps)
