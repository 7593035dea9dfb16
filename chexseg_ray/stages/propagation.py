"""Propagate CAMs with IRNet's boundary maps by random walk.

INPUT   images {cxr_id, height, width, pixels}; cams {cxr_id, height, width, probability[K], cam[K, h, w]}; an IRNet's weights
OUTPUT  cams/{split}/part-*.parquet, the same table at S / 4: {cxr_id, height, width, probability f32[K], cam f16[K, S / 4, S / 4]}
FAN-OUT one row an image; actors with a model each, CPU or GPU
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from chexseg_ray.artifacts import Attempt, FileEntry, Record
from chexseg_ray.data.images import ContentBox, content_box
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.pseudo.irnet import STRIDE, boundary_maps
from chexseg_ray.pseudo.propagation import propagate_cams
from chexseg_ray.pseudo.random_walk import WalkSettings
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.grouped import Row, run_actors
from chexseg_ray.stages.irnet import load_irnet
from chexseg_ray.stages.tables import binary_column, join_cams, split_cams
from chexseg_ray.stages.train import training_device


def make(task: Task) -> Made:
    """Stream the parts of images and CAMs through a pool of actors."""
    task.execution.start_ray()
    config = dict(task.step.config)
    images = {split: task.inputs[f"images_{split}"] for split in config["splits"]}
    parts = [(split, part) for split, record in images.items() for part in record.paths("images/")]
    items = [{"group": i, "split": split, "part": part, "cut": 0} for i, (split, part) in enumerate(parts)]
    resources = task.execution.propagation
    rows = run_actors(
        "propagation",
        ": groups propagated",
        items,
        ReadParts(task.attempt, images, task.inputs["cams"]),
        PropagationActor,
        (task.attempt, task.inputs["irnet"], config, max(1, int(resources.num_cpus))),
        resources,
        task.execution.images_cpus if resources.num_gpus else resources.num_cpus,  # equal on CPUs: Ray Data fuses both into the actor
    )
    files = [FileEntry(*row["file"]) for row in rows]
    return Made(files, rows=sum(int(row["rows"]) for row in rows), run={"device": rows[0]["device"]})


@dataclass
class ReadParts:
    """Reads the bytes of one image part and of its CAMs, ahead of the actors: the first `cut` bytes are the images'."""

    attempt: Attempt
    images: dict[str, Record]
    cams: Record

    def __call__(self, row: Row) -> Row:
        images = self.attempt.store.read(self.images[row["split"]], row["part"])
        cams = self.attempt.store.read(self.cams, row["part"].replace("images/", f"cams/{row['split']}/"))
        return {**row, "data": images + cams, "cut": len(images)}


class PropagationActor:
    """Holds an IRNet; propagates the CAMs of one group of images, in fixed batches."""

    def __init__(self, attempt: Attempt, irnet: Record, config: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self._attempt, self._config = attempt, config
        self._device = training_device()
        model, self._facts = load_irnet(attempt.store, irnet)
        self._model = model.to(self._device)

    def __call__(self, row: Row) -> Row:
        size = self._facts["size"]
        images = pq.read_table(pa.BufferReader(row["data"][: row["cut"]]), columns=["cxr_id", "pixels"])
        table, cams = split_cams(pq.read_table(pa.BufferReader(row["data"][row["cut"] :])))
        assert table.column("cxr_id").equals(images.column("cxr_id")), row["part"]
        boxes = [content_box(r["height"], r["width"], size) for r in table.select(["height", "width"]).to_pylist()]
        maps = self.map(binary_column(images, "pixels", np.uint8, (size, size)), cams, boxes)
        out = join_cams(table, maps, self._config["pathologies"])
        entry = self._attempt.write_table(row["part"].replace("images/", f"cams/{row['split']}/"), out)
        return {"rows": len(out), "file": [entry.path, entry.size, entry.sha256], "device": str(self._device)}

    def map(self, pixels: npt.NDArray[np.uint8], cams: npt.NDArray[np.float16], boxes: Sequence[ContentBox]) -> npt.NDArray[np.float16]:
        """Propagated maps float16 [N, K, S / 4, S / 4] in [0, 1] of pixels uint8 [N, S, S], CAMs [N, K, h, w] and content in pixels."""
        config, size = self._config, self._facts["size"]
        settings = WalkSettings(**config["random_walk"])
        out = []
        for start in range(0, len(pixels), config["batch_size"]):
            own = slice(start, start + config["batch_size"])
            inputs = network_input(torch.tensor(pixels[own]).to(self._device), self._facts["normalisation"])
            boundary, displacement = boundary_maps(self._model, inputs, config["flip_average"])
            maps = propagate_cams(
                torch.tensor(cams[own], dtype=torch.float32).to(self._device),
                boundary,
                displacement if config["instance_wise"] else None,
                [box.on_grid(size, size // STRIDE) for box in boxes[own]],
                settings,
                config.get("foreground", 0.0),
            )
            out.append(maps.cpu().numpy().astype(np.float16))
        return np.concatenate(out)
