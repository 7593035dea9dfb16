"""Compute Grad-CAM maps of all pathologies, for the weak images and for the expert training images.

The step takes decoded images and a trained classifier. It writes, for each part file of images, a part file with the
classifier's probabilities and its Grad-CAM maps. Expert training images have maps only where thresholds are tuned on
them.

INPUT   images {cxr_id, height, width, pixels} of each split; a classifier's weights
OUTPUT  cams/{split}/part-*.parquet {cxr_id, height, width, probability float32[K], cam float16[K, h, w]}: probabilities
        in [0, 1], maps >= 0, and the original size in pixels; 2 kB a row at 320 px
FAN-OUT one row an image; actors that each hold the classifier, on CPU or GPU
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from chexseg_ray.config.resources import ActorCompute
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.engine.devices import device_for
from chexseg_ray.engine.execution import Made, Task
from chexseg_ray.engine.grouped import Row, files_of, rows_of, run_actors
from chexseg_ray.engine.tables import binary_column, join_cams
from chexseg_ray.pseudo.classifier import probabilities
from chexseg_ray.pseudo.gradcam import grad_cam
from chexseg_ray.stages.classifier import load_classifier
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Attempt


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that determine the CAMs: the step's hashed config.

    Args:
        variant: post_relu | pre_relu, the features that are weighed, as in pseudo.gradcam.grad_cam.
        fine_grid: whether DenseNet's last pooling is left out for the maps, which are then twice as fine.
        batch_size: images that pass the network together; the last bits of a map depend on it.
        pathologies: K names, in channel order.
        splits: weak, and expert_train where thresholds are tuned.
    """

    variant: str
    fine_grid: bool
    batch_size: int
    pathologies: Sequence[str]
    splits: Sequence[str]


def make(task: Task) -> Made:
    """Stream the part files of images through a pool of actors.

    Args:
        task: the step to make; its inputs are `images_SPLIT` of each split and `classifier`.

    Returns:
        The part files of CAMs; `rows` counts the images. There are no metrics; `run` has the actors' device.

    Raises:
        InputError, TransientError: as run_actors.
    """
    task.execution.start_ray()
    settings, compute = Settings(**task.step.config), task.execution.compute
    images = {split: task.inputs[f"images_{split}"] for split in settings.splits}
    parts = [(split, part) for split, record in images.items() for part in record.paths("images/")]
    arguments = (task.attempt, task.inputs["classifier"], settings, compute.cams)
    read = ReadPart(task.attempt, images)
    reading, what = compute.images.num_cpus, ": groups mapped"
    results = run_actors("cams", what, parts, read, CamActor, arguments, compute.cams, reading, compute.deterministic)
    return Made(files_of(results), rows=rows_of(results), run={"device": results[0]["device"]})


@dataclass
class ReadPart:
    """Reads the bytes of part files of images, ahead of the actors.

    Args:
        attempt: gives the store.
        images: the images record of each split.
    """

    attempt: Attempt
    images: dict[str, Record]

    def __call__(self, part: Sequence[str]) -> list[bytes]:
        """Read the bytes of one file; `part` is (split, path)."""
        split, path = part
        return [self.attempt.store.read(self.images[split], path)]


class CamActor:
    """Holds a classifier, and makes the CAMs of one part file of images at a time, in fixed batches.

    Args:
        attempt: where the CAMs are written.
        classifier: the classifier's record.
        settings: the step's settings.
        resources: what the actor asked Ray for.
    """

    def __init__(self, attempt: Attempt, classifier: Record, settings: Settings, resources: ActorCompute) -> None:
        """Load the classifier onto the actor's device."""
        torch.set_num_threads(resources.threads)
        self._attempt, self._settings = attempt, settings
        self._device = device_for(resources.num_gpus)
        model, self._facts = load_classifier(attempt.store, classifier)
        self._model = model.to(self._device)

    def __call__(self, part: Sequence[str], files: list[bytes]) -> Row:
        """Write the CAMs of one part file.

        Args:
            part: (split, path) of the images.
            files: the bytes that ReadPart read.

        Returns:
            {rows, files, device}.
        """
        split, path = part
        table = pq.read_table(pa.BufferReader(files[0]))
        size = self._facts["size"]
        scores, maps = self.map(binary_column(table, "pixels", np.uint8, (size, size)))
        out = table.select(["cxr_id", "height", "width"])
        out = out.append_column("probability", pa.array(list(scores), type=pa.list_(pa.float32())))
        out = join_cams(out, maps, self._settings.pathologies)
        entry = self._attempt.write_table(path.replace("images/", f"cams/{split}/"), out)
        return {"rows": len(out), "files": [entry], "device": str(self._device)}

    def map(self, pixels: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float16]]:
        """Compute the probabilities and the CAMs of images.

        Args:
            pixels: uint8 [N, S, S].

        Returns:
            Probabilities float32 [N, K] in [0, 1], and maps float16 [N, K, h, w] >= 0 (paper eq. 1 and 2).
        """
        settings, count = self._settings, len(self._settings.pathologies)
        scores, maps = [], []
        for start in range(0, len(pixels), settings.batch_size):
            batch = torch.tensor(pixels[start : start + settings.batch_size]).to(self._device)
            images = network_input(batch, self._facts["normalisation"])
            logits, cams = grad_cam(self._model, images, count, settings.variant, settings.fine_grid)
            scores.append(probabilities(logits, count).cpu().numpy().astype(np.float32))
            maps.append(cams.cpu().numpy().astype(np.float16))
        return np.concatenate(scores), np.concatenate(maps)
