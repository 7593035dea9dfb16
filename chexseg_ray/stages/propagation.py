"""Propagate CAMs within IRNet's boundary maps by random walk (paper appendix A.2).

The step takes the CAMs, the images that they belong to, and a trained IRNet. It writes the same table with propagated
maps, which the step `pseudo_masks` reads like CAMs.

INPUT   images {cxr_id, height, width, pixels}; cams {cxr_id, height, width, probability[K], cam[K, h, w]}; the weights
        of an IRNet
OUTPUT  cams/{split}/part-*.parquet {cxr_id, height, width, probability float32[K], cam float16[K, S / 4, S / 4]}: maps
        stretched to [0, 1], everything else as in the CAMs
FAN-OUT one row an image; actors that each hold the IRNet, on CPU or GPU
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from chexseg_ray.config.resources import ActorCompute
from chexseg_ray.data.images import ContentBox, content_box
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.engine.devices import device_for
from chexseg_ray.engine.execution import Made, Task
from chexseg_ray.engine.grouped import Row, files_of, rows_of, run_actors
from chexseg_ray.engine.tables import binary_column, join_cams, split_cams
from chexseg_ray.pseudo.irnet import STRIDE, boundary_maps
from chexseg_ray.pseudo.propagation import propagate_cams
from chexseg_ray.pseudo.random_walk import WalkSettings
from chexseg_ray.stages.irnet import load_irnet
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Attempt


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that determine the propagated maps: the step's hashed config.

    Args:
        random_walk: {radius, beta, steps}, as in pseudo.random_walk.WalkSettings.
        flip_average: whether boundary maps are the mean of the image's and its mirror image's.
        instance_wise: whether a CAM is split by instance before it is propagated.
        foreground: share of a CAM's maximum above which a cell is confident foreground; read if instance_wise.
        pathologies: K names, in channel order.
        splits: the splits of the cams step.
        batch_size: images that pass the network together; the last bits of a map depend on it.
    """

    random_walk: Mapping[str, float]
    flip_average: bool
    instance_wise: bool
    foreground: float = 0.0
    pathologies: Sequence[str]
    splits: Sequence[str]
    batch_size: int

    @property
    def walk(self) -> WalkSettings:
        """The settings of the random walk."""
        return WalkSettings(int(self.random_walk["radius"]), self.random_walk["beta"], int(self.random_walk["steps"]))


def make(task: Task) -> Made:
    """Stream the part files of images and CAMs through a pool of actors.

    Args:
        task: the step to make; its inputs are `images_SPLIT` of each split, `cams` and `irnet`.

    Returns:
        The part files of propagated CAMs; `rows` counts the images. There are no metrics; `run` has the actors' device.

    Raises:
        InputError, TransientError: as run_actors.
    """
    task.execution.start_ray()
    settings, compute = Settings(**task.step.config), task.execution.compute
    images = {split: task.inputs[f"images_{split}"] for split in settings.splits}
    parts = [(split, part) for split, record in images.items() for part in record.paths("images/")]
    arguments = (task.attempt, task.inputs["irnet"], settings, compute.propagation)
    read = ReadParts(task.attempt, images, task.inputs["cams"])
    cpus = compute.images.num_cpus
    what = ": groups propagated"
    resources, same = compute.propagation, compute.deterministic
    results = run_actors("propagation", what, parts, read, PropagationActor, arguments, resources, cpus, same)
    return Made(files_of(results), rows=rows_of(results), run={"device": results[0]["device"]})


@dataclass
class ReadParts:
    """Reads the bytes of part files of images and of their CAMs, ahead of the actors.

    Args:
        attempt: gives the store.
        images: the images record of each split.
        cams: the cams record.
    """

    attempt: Attempt
    images: dict[str, Record]
    cams: Record

    def __call__(self, part: Sequence[str]) -> list[bytes]:
        """Read the bytes of one file of images and of its file of CAMs; `part` is (split, path of the images)."""
        split, path = part
        store = self.attempt.store
        return [store.read(self.images[split], path), store.read(self.cams, path.replace("images/", f"cams/{split}/"))]


class PropagationActor:
    """Holds an IRNet, and propagates the CAMs of one part file of images at a time, in fixed batches.

    Args:
        attempt: where the maps are written.
        irnet: the irnet record.
        settings: the step's settings.
        resources: what the actor asked Ray for.
    """

    def __init__(self, attempt: Attempt, irnet: Record, settings: Settings, resources: ActorCompute) -> None:
        """Load the IRNet onto the actor's device."""
        torch.set_num_threads(resources.threads)
        self._attempt, self._settings = attempt, settings
        self._device = device_for(resources.num_gpus)
        model, self._facts = load_irnet(attempt.store, irnet)
        self._model = model.to(self._device)

    def __call__(self, part: Sequence[str], files: list[bytes]) -> Row:
        """Write the propagated maps of one part file.

        Args:
            part: (split, path) of the images.
            files: the bytes that ReadParts read: of the images, and of their CAMs.

        Returns:
            {rows, files, device}.
        """
        split, path = part
        size = self._facts["size"]
        images = pq.read_table(pa.BufferReader(files[0]), columns=["cxr_id", "pixels"])
        table, cams = split_cams(pq.read_table(pa.BufferReader(files[1])))
        assert table.column("cxr_id").equals(images.column("cxr_id")), path
        boxes = [
            content_box(row["height"], row["width"], size) for row in table.select(["height", "width"]).to_pylist()
        ]
        maps = self.map(binary_column(images, "pixels", np.uint8, (size, size)), cams, boxes)
        out = join_cams(table, maps, self._settings.pathologies)
        entry = self._attempt.write_table(path.replace("images/", f"cams/{split}/"), out)
        return {"rows": len(out), "files": [entry], "device": str(self._device)}

    def map(
        self, pixels: npt.NDArray[np.uint8], cams: npt.NDArray[np.float16], boxes: Sequence[ContentBox]
    ) -> npt.NDArray[np.float16]:
        """Propagate the CAMs of images.

        Args:
            pixels: uint8 [N, S, S].
            cams: float16 [N, K, h, w] >= 0.
            boxes: each image's content, in pixels.

        Returns:
            float16 [N, K, S / 4, S / 4] in [0, 1].
        """
        settings, size, walk = self._settings, self._facts["size"], self._settings.walk
        out = []
        for start in range(0, len(pixels), settings.batch_size):
            batch = slice(start, start + settings.batch_size)
            inputs = network_input(torch.tensor(pixels[batch]).to(self._device), self._facts["normalisation"])
            boundary, displacement = boundary_maps(self._model, inputs, settings.flip_average)
            maps = propagate_cams(
                torch.tensor(cams[batch], dtype=torch.float32).to(self._device),
                boundary,
                displacement if settings.instance_wise else None,
                [box.on_grid(size, size // STRIDE) for box in boxes[batch]],
                walk,
                settings.foreground,
            )
            out.append(maps.cpu().numpy().astype(np.float16))
        return np.concatenate(out)
