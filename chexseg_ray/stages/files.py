"""Predict X-rays from files.

INPUT   files {cxr_id, place, path, shown, stamp, fault}: PNG, JPEG or DICOM, on any file system of pyarrow
OUTPUT  overlays/{cxr_id}.png; of each group entries of CheXlocalize's exchange format, areas {cxr_id, file, height, width, pathology,
        probability, threshold, pixels, share} and rejects {cxr_id, file, reason}; of many groups .chexseg_ray_parts/{hash}.json until all are done
FAN-OUT one result a group of files; a plain loop for few files, actors that each hold the network for many
"""

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.fs as pafs
import torch

from chexseg_ray.artifacts import Store, storage
from chexseg_ray.data.dicom import decode_dicom, is_dicom
from chexseg_ray.data.images import ImageError, decode_grey
from chexseg_ray.data.masks import exchange_entry
from chexseg_ray.data.overlays import overlay_png
from chexseg_ray.segmentation.inference import BATCH, Segmented
from chexseg_ray.stages.execution import ActorResources
from chexseg_ray.stages.exported import NOTICE, ExportedModel, open_model
from chexseg_ray.stages.grouped import Row, group_slices, run_actors

PARTS = ".chexseg_ray_parts"
_PART = re.compile(r"[0-9a-f]{24}\.json(\.[0-9a-f]{8}\.tmp)?")
MANY = 64  # files, from which starting Ray pays
MOST_PIXELS = 40_000_000  # of an X-ray: ten masks at full size and their overlay take 0.9 GB and 13 s then


def predict_files(model: ExportedModel, x_rays: Any, out: Store, resources: ActorResources, start_ray: Callable[[], None]) -> Iterator[Row]:
    """Predict files and draw their overlays into `out`.

    Args:
        model: card and weights.
        x_rays: `files` (cxr_id, place, path, shown, stamp, fault) and `filesystems` by place.
        out: gets overlays/{cxr_id}.png, and parts of many files. Parts of other files, or of another model, go: the overlays would not be theirs.
        resources: of the actors, when there are many files.
        start_ray: called then.

    Returns:
        {entries: {cxr_id: exchange entry}, areas: [...], rejects: [...]} of each group of files, in their order.
    """
    files = [astuple(own) for own in x_rays.files]
    items: list[Row] = [{"group": i, "files": json.dumps(files[part])} for i, part in enumerate(group_slices(len(files), BATCH))]
    if len(files) < MANY:
        drop_parts(out)
        actor = FileActor(model, x_rays.filesystems, out, torch.get_num_threads())
        return map(actor, items)
    model_name = hashlib.sha256(json.dumps(model.card, sort_keys=True).encode() + hashlib.sha256(model.weights).digest()).hexdigest()
    for item in items:
        item["part"] = f"{PARTS}/{hashlib.sha256((model_name + item['files']).encode()).hexdigest()[:24]}.json"
    drop_parts(out, keep={item["part"] for item in items})
    missing = _missing(out, items)
    if missing:
        start_ray()
        own = (model, x_rays.filesystems, out, max(1, int(resources.num_cpus)))
        numbered = [item | {"group": i} for i, item in enumerate(missing)]
        run_actors("predict", ": groups of files predicted", numbered, _unread, FileActor, own, resources, resources.num_cpus)
    return (json.loads(out.get(item["part"])) for item in items)


def drop_parts(out: Store, keep: Container[str] = ()) -> None:
    """Delete the parts of groups, but those to keep, and their folder when nothing is left in it."""
    parts = [f"{PARTS}/{name}" for name in out.names(PARTS) if _PART.fullmatch(name)]
    for part in parts:
        if part not in keep:
            out.delete(part)
    if parts and not out.names(PARTS):
        out.delete(PARTS)


def _missing(out: Store, items: Sequence[Row]) -> list[Row]:
    """The groups that have no part, or one whose overlays are not all there."""
    parts, drawn = ({f"{folder}/{name}" for name in out.names(folder)} for folder in (PARTS, "overlays"))

    def whole(item: Row) -> bool:
        return item["part"] in parts and all(f"overlays/{own}.png" in drawn for own in json.loads(out.get(item["part"]))["entries"])

    return [item for item, made in zip(items, out.side_by_side(whole, items), strict=True) if not made]


def _unread(row: Row) -> Row:
    return row


class FileActor:
    """Holds a network; reads, predicts and draws one group of files."""

    def __init__(self, model: ExportedModel, filesystems: Sequence[pafs.FileSystem], out: Store, threads: int) -> None:
        torch.set_num_threads(threads)
        self._segmenter, self._filesystems, self._out = open_model(model), filesystems, out

    def __call__(self, row: Row) -> Row:
        accepted, rejects = [], []
        for cxr_id, place, path, shown, _, fault in json.loads(row["files"]):
            try:
                if fault:
                    raise ImageError(fault)
                accepted.append((cxr_id, shown, read_xray(self._filesystems[place], path)))
            except ImageError as error:
                rejects.append({"cxr_id": cxr_id, "file": shown, "reason": error.reason})
                self._out.delete(f"overlays/{cxr_id}.png")  # of an earlier run
        names = self._segmenter.pathologies
        areas: list[dict[str, Any]] = []
        entries: dict[str, Any] = {}
        found = self._segmenter.images([grey for *_, grey in accepted]) if accepted else iter(())
        for (cxr_id, shown, grey), own in zip(accepted, found, strict=True):
            labels = [f"{name} {p:.2f}" for name, p in zip(names, own.probability, strict=True)]
            self._out.put(f"overlays/{cxr_id}.png", overlay_png(grey, own.masks, labels, NOTICE))
            entries[cxr_id] = exchange_entry(names, own.masks)
            areas += self._areas(cxr_id, shown, own)
        result = {"entries": entries, "areas": areas, "rejects": rejects}
        if "part" not in row:
            return result
        self._out.put(row["part"], json.dumps(result).encode())
        return {"rows": len(accepted)}

    def _areas(self, cxr_id: str, shown: str, own: Segmented) -> list[dict[str, Any]]:
        height, width = own.masks.shape[1:]
        pixels, cuts = own.masks.sum(axis=(1, 2)).tolist(), self._segmenter.thresholds.tolist()
        identity = {"cxr_id": cxr_id, "file": shown, "height": height, "width": width}
        return [
            identity | {"pathology": name, "probability": round(p, 6), "threshold": round(cut, 6), "pixels": n, "share": round(n / height / width, 6)}
            for name, p, cut, n in zip(self._segmenter.pathologies, own.probability.tolist(), cuts, pixels, strict=True)
        ]


def read_xray(filesystem: pafs.FileSystem, path: str) -> npt.NDArray[np.uint8]:
    """A PNG, JPEG or DICOM file as uint8 [height, width].

    Raises:
        ImageError: its bytes are no usable X-ray, or it is `missing`.
    """
    try:
        with storage("read", path), filesystem.open_input_file(path) as stream:
            data = stream.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ImageError("missing") from None
    return (decode_dicom if is_dicom(data) else decode_grey)(data, MOST_PIXELS)
