"""Pseudo masks of the weakly labelled images.

INPUT   cams {cxr_id, height, width, probability[K], cam[K, h, w]} of the weak and the expert training images, as Grad-CAM made
        them (method gradcam) or propagated (method irnet); image labels;
        expert training masks (for tuned thresholds)
OUTPUT  masks/part-*.parquet {cxr_id, height, width, rle[K]}
FAN-OUT one row an image; one task a group; CPU only
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chexseg_ray.artifacts import Attempt, FileEntry, Record, Store
from chexseg_ray.data.images import content_box
from chexseg_ray.data.masks import Rle, decode_rle, encode_rle
from chexseg_ray.errors import InputError
from chexseg_ray.evaluation.thresholds import Choice, ScoreHistogram, cam_grid, choose_cam_thresholds
from chexseg_ray.pseudo.gating import open_gates
from chexseg_ray.pseudo.thresholding import normalised_content, otsu_mask
from chexseg_ray.segmentation.mixing import expert_subset
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.grouped import Row, run_tasks
from chexseg_ray.stages.tables import label_matrix, labels_by_id, mask_schema, read_manifest, split_cams


def make(task: Task) -> Made:
    """Choose thresholds, then write a mask for every weak image and pathology."""
    config = dict(task.step.config)
    manifest = read_manifest(task.store, task.inputs["manifest"])
    if config["gate"] == "label" and not (label_matrix(manifest, list(manifest["cxr_id"])) == 1).any():
        raise InputError(
            "no weak image has a label 1 of any pathology, so every pseudo mask would be empty: "
            "set pseudo_masks.gate=probability (or none), or name a weak_csv with labels"
        )
    task.execution.start_ray()
    choices = _choose(task, config)
    cams = task.inputs["cams"]
    labels = labels_by_id(manifest)
    items = []
    for group, part in enumerate(cams.paths("cams/weak/")):
        ids = task.store.read_table(cams, part, ["cxr_id"]).column("cxr_id").to_pylist()
        positive = [[bool(v == 1) for v in labels[cxr_id]] for cxr_id in ids]
        items.append({"group": group, "part": part, "positive": json.dumps(positive)})
    thresholds = [choice.threshold for choice in choices] if choices else None
    work = MaskGroup(task.attempt, cams, config, thresholds)
    rows = run_tasks("pseudo_masks", f" ({config['method']}): groups written", items, work, task.execution.pseudo_masks_cpus)
    files = [FileEntry(*row["file"]) for row in rows]
    nonempty = np.sum([row["nonempty"] for row in rows], axis=0).tolist()
    metrics: dict[str, Any] = {"nonempty_masks": dict(zip(config["pathologies"], nonempty, strict=True))}
    if choices:
        metrics["thresholds"] = {name: _plain(choice) for name, choice in zip(config["pathologies"], choices, strict=True)}
    return Made(files, rows=sum(int(row["rows"]) for row in rows), metrics=metrics)


def _plain(choice: Choice) -> dict[str, Any]:
    return {"threshold": choice.threshold, "iou": None if np.isnan(choice.iou) else choice.iou, "source": choice.source}


def _choose(task: Task, config: Mapping[str, Any]) -> list[Choice] | None:
    if config["thresholds"] == "otsu":
        return None
    if config["thresholds"] == "fixed":
        return [Choice(float(np.float32(config["fixed_threshold"])), float("nan"), "fixed") for _ in config["pathologies"]]
    images = task.inputs["images_expert_train"]
    masks = {row["cxr_id"]: row for row in task.store.read_tables(images, "masks/").to_pylist()}
    chosen = expert_subset(sorted(masks), config.get("sweep_seed", 0), config.get("trial", 0), config["num_expert"])
    labels = labels_by_id(read_manifest(task.store, task.inputs["manifest_expert_train"]))
    histogram = ScoreHistogram(len(config["pathologies"]), cam_grid(config["grid_step"]))
    for row in _cam_rows(task.store, task.inputs["cams"], task.inputs["cams"].paths("cams/expert_train/")):
        if row["cxr_id"] in set(chosen):
            gate = _gate(config, [v == 1 for v in labels[row["cxr_id"]]], row)
            _add(histogram, row, masks[row["cxr_id"]], gate, config["size"])
    return choose_cam_thresholds(histogram)


def _add(histogram: ScoreHistogram, cam: Row, mask: Row, gate: npt.NDArray[np.bool_], size: int) -> None:
    """One expert image: what the gate leaves out is scored 0, as its pseudo mask would be empty."""
    box = content_box(cam["height"], cam["width"], size)
    scores = normalised_content(cam["cam"], box, size)
    for k, open_ in enumerate(gate):
        truth = decode_rle(Rle(size, size, mask["rle"][k]))[box.rows, box.columns]
        histogram.add(k, scores[k] if open_ else np.zeros_like(scores[k]), truth)


def _cam_rows(store: Store, record: Record, parts: list[str]) -> Iterator[Row]:
    """The rows of some parts, each `cam` as float16 [K, h, w]."""
    for part in parts:
        table, maps = split_cams(store.read_table(record, part))
        for i, row in enumerate(table.to_pylist()):
            yield {**row, "cam": maps[i]}


def _gate(config: Mapping[str, Any], positive: Sequence[bool], cam: Row) -> npt.NDArray[np.bool_]:
    """bool [K] of one image."""
    labels, probability = np.array([positive], dtype=np.float64), np.array([cam["probability"]], dtype=np.float32)
    gate: npt.NDArray[np.bool_] = open_gates(config, labels, probability)[0]
    return gate


@dataclass
class MaskGroup:
    """Turns one part of CAMs into one part of masks."""

    attempt: Attempt
    cams: Record
    config: dict[str, Any]
    thresholds: list[float] | None

    def __call__(self, row: Row) -> Row:
        size, names = self.config["size"], self.config["pathologies"]
        positive = json.loads(row["positive"])
        out, nonempty = [], np.zeros(len(names), dtype=int)
        for cam, labels in zip(_cam_rows(self.attempt.store, self.cams, [row["part"]]), positive, strict=True):
            masks = self.masks(cam, _gate(self.config, labels, cam))
            nonempty += masks.any(axis=(1, 2))
            rles = [encode_rle(mask) for mask in masks]
            out.append({"cxr_id": cam["cxr_id"], "height": cam["height"], "width": cam["width"], "rle": rles})
        table = pa.Table.from_pylist(out, schema=mask_schema(names, size))
        entry = self.attempt.write_table(row["part"].replace("cams/weak/", "masks/"), table)
        return {"rows": len(out), "file": [entry.path, entry.size, entry.sha256], "nonempty": nonempty.tolist()}

    def masks(self, cam: Row, gate: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """bool [K, size, size]; empty where the gate is closed, and in the padding."""
        size = self.config["size"]
        box = content_box(cam["height"], cam["width"], size)
        scores = normalised_content(cam["cam"], box, size)
        out = np.zeros((len(gate), size, size), dtype=bool)
        for k in np.flatnonzero(gate):
            inner = otsu_mask(scores[k]) if self.thresholds is None else scores[k] > np.float32(self.thresholds[k])
            out[k, box.rows, box.columns] = inner
        return out
