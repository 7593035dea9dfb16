"""Turn the maps of the weakly labelled images into pseudo masks.

The step takes one map for each image and pathology, and image-level labels. It cuts each map at a threshold: one for
each pathology, tuned on the expert training masks or fixed, or Otsu's for each map. A gate decides which images may
show a pathology; where it is closed, the mask is empty.

INPUT   cams {cxr_id, height, width, probability[K], cam[K, h, w]} of the weak images: Grad-CAM's (method gradcam), or
        propagated (method irnet); manifest {cxr_id, labels[K]} of the weak split;
        for tuned thresholds also cams, manifest and masks {cxr_id, rle[K]} of the expert training images
OUTPUT  masks/part-*.parquet {cxr_id, height, width, rle[K]}: masks at S x S pixels, and the original size in pixels;
        thresholds, and the number of non-empty masks, by pathology are in the record's metrics
FAN-OUT one row an image; one task a part file; CPU only
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chexseg_ray.data.images import content_box
from chexseg_ray.data.masks import Rle, decode_rle, encode_rle
from chexseg_ray.engine.execution import Made, Task
from chexseg_ray.engine.grouped import Row, files_of, rows_of, run_tasks
from chexseg_ray.engine.tables import label_matrix, labels_by_id, mask_schema, read_manifest, split_cams
from chexseg_ray.errors import InputError
from chexseg_ray.evaluation.thresholds import Choice, ScoreHistogram, cam_grid, choose_cam_thresholds
from chexseg_ray.pseudo.gating import open_gates
from chexseg_ray.pseudo.thresholding import normalised_content, otsu_mask
from chexseg_ray.segmentation.mixing import expert_subset
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Attempt, Store


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that determine the pseudo masks: the step's hashed config.

    Args:
        method: gradcam | irnet, a name of config.methods.METHODS.
        pathologies: K names, in channel order.
        size: S, pixels of a side of the masks.
        thresholds: tuned | otsu | fixed.
        gate: label | probability | none, as in pseudo.gating.open_gates.
        gate_probability: in [0, 1]; NaN unless the gate is `probability`.
        fixed_threshold: in (0, 1), of a map stretched to [0, 1]; NaN unless thresholds are fixed.
        grid_step: distance between the thresholds that are tried; NaN unless thresholds are tuned.
        num_expert: number of expert training images to tune on; None for all.
        sweep_seed: the seed by which these are drawn.
        trial: the trial that they are drawn for.
    """

    method: str
    pathologies: Sequence[str]
    size: int
    thresholds: str
    gate: str
    gate_probability: float = math.nan
    fixed_threshold: float = math.nan
    grid_step: float = math.nan
    num_expert: int | None = None
    sweep_seed: int = 0
    trial: int = 0

    def gates(self, positive: Sequence[bool], cam: Row) -> npt.NDArray[np.bool_]:
        """Decide which pathologies of one image may have a mask.

        Args:
            positive: whether each of the K labels is 1.
            cam: the image's row of CAMs.

        Returns:
            bool [K].
        """
        labels = np.array([positive], dtype=np.float64)
        probability = np.array([cam["probability"]], dtype=np.float32)
        gates: npt.NDArray[np.bool_] = open_gates(labels, probability, self.gate, self.gate_probability)[0]
        return gates


def make(task: Task) -> Made:
    """Choose thresholds, then write a mask for every weak image and pathology.

    Args:
        task: the step to make; its inputs are `cams` and `manifest`, and if thresholds are tuned also
            `manifest_expert_train` and `images_expert_train`.

    Returns:
        The part files of masks; `rows` counts the weak images. The metrics are the number of masks that are not empty
        by pathology (`nonempty_masks`), and `thresholds` unless they are Otsu's.

    Raises:
        InputError: the gate is `label`, and no weak image has a label 1; or there are fewer expert images than asked
            for. Otherwise as run_tasks.
        TransientError: as run_tasks.
    """
    settings, cams = Settings(**task.step.config), task.inputs["cams"]
    manifest = read_manifest(task.store, task.inputs["manifest"])
    if settings.gate == "label" and not (label_matrix(manifest, list(manifest["cxr_id"])) == 1).any():
        raise InputError(
            "no weak image has a label 1 of any pathology, so every pseudo mask would be empty: "
            "set pseudo_masks.gate=probability (or none), or name a weak_csv with labels"
        )
    task.execution.start_ray()
    choices = _choose_thresholds(task, settings)
    thresholds = [choice.threshold for choice in choices] if choices else None
    labels = labels_by_id(manifest)
    payloads = []
    for part in cams.paths("cams/weak/"):
        ids = task.store.read_table(cams, part, ["cxr_id"]).column("cxr_id").to_pylist()
        payloads.append((part, [[bool(label == 1) for label in labels[cxr_id]] for cxr_id in ids]))
    work = MaskGroup(task.attempt, cams, settings, thresholds)
    cpus = task.execution.compute.pseudo_masks.num_cpus
    results = run_tasks("pseudo_masks", f" ({settings.method}): groups written", payloads, work, cpus)
    nonempty = np.sum([result["nonempty"] for result in results], axis=0).tolist()
    metrics: dict[str, Any] = {"nonempty_masks": dict(zip(settings.pathologies, nonempty, strict=True))}
    if choices:
        named = zip(settings.pathologies, choices, strict=True)
        metrics["thresholds"] = {name: _choice_as_json(choice) for name, choice in named}
    return Made(files_of(results), rows=rows_of(results), metrics=metrics)


def _choice_as_json(choice: Choice) -> dict[str, Any]:
    """A threshold as the record has it: {threshold, iou (null if undefined), source}."""
    return {"threshold": choice.threshold, "iou": None if np.isnan(choice.iou) else choice.iou, "source": choice.source}


def _choose_thresholds(task: Task, settings: Settings) -> list[Choice] | None:
    """Choose a threshold for each pathology.

    Args:
        task: the step.
        settings: its settings.

    Returns:
        K choices, or None for Otsu's threshold, which each map has for itself.

    Raises:
        InputError: there are fewer expert training images than settings.num_expert.
    """
    if settings.thresholds == "otsu":
        return None
    if settings.thresholds == "fixed":
        return [Choice(float(np.float32(settings.fixed_threshold)), math.nan, "fixed") for _ in settings.pathologies]
    mask_rows = task.store.read_tables(task.inputs["images_expert_train"], "masks/").to_pylist()
    masks = {row["cxr_id"]: row for row in mask_rows}
    chosen = set(expert_subset(sorted(masks), settings.sweep_seed, settings.trial, settings.num_expert))
    labels = labels_by_id(read_manifest(task.store, task.inputs["manifest_expert_train"]))
    histogram = ScoreHistogram(len(settings.pathologies), cam_grid(settings.grid_step))
    cams = task.inputs["cams"]
    for cam in _cam_rows(task.store, cams, cams.paths("cams/expert_train/")):
        if cam["cxr_id"] in chosen:
            gates = settings.gates([label == 1 for label in labels[cam["cxr_id"]]], cam)
            _add_image(histogram, cam, masks[cam["cxr_id"]], gates, settings.size)
    return choose_cam_thresholds(histogram)


def _add_image(histogram: ScoreHistogram, cam: Row, mask: Row, gates: npt.NDArray[np.bool_], size: int) -> None:
    """Add one expert image to a histogram; where its gate is closed, it scores 0, as its pseudo mask would be empty.

    Args:
        histogram: scores against truth of K pathologies.
        cam: the image's row of CAMs.
        mask: the image's row of masks.
        gates: bool [K].
        size: S, pixels of a side.
    """
    box = content_box(cam["height"], cam["width"], size)
    scores = normalised_content(cam["cam"], box, size)
    for k, is_open in enumerate(gates):
        truth = decode_rle(Rle(size, size, mask["rle"][k]))[box.rows, box.columns]
        histogram.add(k, scores[k] if is_open else np.zeros_like(scores[k]), truth)


def _cam_rows(store: Store, record: Record, parts: list[str]) -> Iterator[Row]:
    """Yield the rows of part files of CAMs, in order; `cam` is float16 [K, h, w].

    Args:
        store: holds the record's files.
        record: the cams or propagation record.
        parts: the files' paths.
    """
    for part in parts:
        table, maps = split_cams(store.read_table(record, part))
        for i, row in enumerate(table.to_pylist()):
            yield {**row, "cam": maps[i]}


@dataclass
class MaskGroup:
    """Turns a part file of CAMs into a part file of masks.

    Args:
        attempt: where the masks are written.
        cams: the cams or propagation record.
        settings: the step's settings.
        thresholds: K thresholds of maps stretched to [0, 1]; None for Otsu's threshold of each map.
    """

    attempt: Attempt
    cams: Record
    settings: Settings
    thresholds: list[float] | None

    def __call__(self, _: int, payload: tuple[str, list[list[bool]]]) -> Row:
        """Write the masks of one part file.

        Args:
            payload: the path of the file of CAMs, and for each of its images whether each of the K labels is 1.

        Returns:
            {rows, files, nonempty}; the last is the number of non-empty masks of each pathology.
        """
        part, positive = payload
        names = self.settings.pathologies
        rows, nonempty = [], np.zeros(len(names), dtype=int)
        for cam, labels in zip(_cam_rows(self.attempt.store, self.cams, [part]), positive, strict=True):
            masks = self.masks(cam, self.settings.gates(labels, cam))
            nonempty += masks.any(axis=(1, 2))
            rles = [encode_rle(mask) for mask in masks]
            rows.append({"cxr_id": cam["cxr_id"], "height": cam["height"], "width": cam["width"], "rle": rles})
        table = pa.Table.from_pylist(rows, schema=mask_schema(names, self.settings.size))
        entry = self.attempt.write_table(part.replace("cams/weak/", "masks/"), table)
        return {"rows": len(rows), "files": [entry], "nonempty": nonempty.tolist()}

    def masks(self, cam: Row, gates: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Make the masks of one image.

        Args:
            cam: the image's row of CAMs.
            gates: bool [K].

        Returns:
            bool [K, S, S]; empty where the gate is closed, and in the padding.
        """
        size = self.settings.size
        box = content_box(cam["height"], cam["width"], size)
        scores = normalised_content(cam["cam"], box, size)
        out = np.zeros((len(gates), size, size), dtype=bool)
        for k in np.flatnonzero(gates):
            if self.thresholds is None:
                content_mask = otsu_mask(scores[k])
            else:
                content_mask = scores[k] > np.float32(self.thresholds[k])
            out[k, box.rows, box.columns] = content_mask
        return out
