"""Predict X-rays from files.

INPUT   files {cxr_id, path}: PNG, JPEG or DICOM, on any file system of pyarrow
OUTPUT  overlays/{cxr_id}.png; entries of CheXlocalize's exchange format; areas {cxr_id, file, height, width, pathology, probability,
        threshold, pixels, share}; rejects {cxr_id, file, reason}
FAN-OUT one result a group of files; a plain loop for few files, actors that each hold the network for many
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch

from chexseg_ray.artifacts import Store, open_filesystem, storage
from chexseg_ray.data.dicom import decode_dicom, is_dicom
from chexseg_ray.data.images import ImageError, decode_grey
from chexseg_ray.data.masks import exchange_entry
from chexseg_ray.data.overlays import overlay_png
from chexseg_ray.segmentation.inference import BATCH, Segmented
from chexseg_ray.stages.execution import ActorResources
from chexseg_ray.stages.exported import NOTICE, ExportedModel, open_model
from chexseg_ray.stages.grouped import Row, group_slices, run_actors

MANY = 64  # files, from which starting Ray pays


def predict_files(
    model: ExportedModel, files: Sequence[tuple[str, str]], out: Store, resources: ActorResources, start_ray: Callable[[], None]
) -> Row:
    """Predict files and draw their overlays into `out`.

    Args:
        model: card and weights.
        files: (cxr_id, path) of each.
        out: gets overlays/{cxr_id}.png.
        resources: of the actors, when there are many files.
        start_ray: called then.

    Returns:
        {entries: {cxr_id: exchange entry}, areas: [...], rejects: [...]}.
    """
    items: list[Row] = [{"group": i, "files": json.dumps(files[part])} for i, part in enumerate(group_slices(len(files), BATCH))]
    if len(files) < MANY:
        actor = FileActor(model, out, torch.get_num_threads())
        results = [actor(_unread(item)) for item in items]
    else:
        start_ray()
        own = (model, out, max(1, int(resources.num_cpus)))
        results = run_actors("predict", ": groups of files predicted", items, _unread, FileActor, own, resources, resources.num_cpus)
    return {
        "entries": {cxr_id: entry for result in results for cxr_id, entry in result["entries"].items()},
        "areas": [row for result in results for row in result["areas"]],
        "rejects": [row for result in results for row in result["rejects"]],
    }


def _unread(row: Row) -> Row:
    return row


class FileActor:
    """Holds a network; reads, predicts and draws one group of files."""

    def __init__(self, model: ExportedModel, out: Store, threads: int) -> None:
        torch.set_num_threads(threads)
        self._segmenter, self._out = open_model(model), out

    def __call__(self, row: Row) -> Row:
        accepted, rejects = [], []
        for cxr_id, path in json.loads(row["files"]):
            try:
                accepted.append((cxr_id, path, read_xray(path)))
            except ImageError as error:
                rejects.append({"cxr_id": cxr_id, "file": path, "reason": error.reason})
        found = self._segmenter.images([grey for *_, grey in accepted]) if accepted else []
        names, areas, entries = self._segmenter.pathologies, [], {}
        for (cxr_id, path, grey), own in zip(accepted, found, strict=True):
            labels = [f"{name} {p:.2f}" for name, p in zip(names, own.probability, strict=True)]
            self._out.put(f"overlays/{cxr_id}.png", overlay_png(grey, own.masks, labels, NOTICE))
            entries[cxr_id] = exchange_entry(names, own.masks)
            areas += self._areas(cxr_id, path, own)
        return {"rows": len(accepted), "entries": entries, "areas": areas, "rejects": rejects}

    def _areas(self, cxr_id: str, path: str, own: Segmented) -> list[dict[str, Any]]:
        height, width = own.masks.shape[1:]
        pixels, cuts = own.masks.sum(axis=(1, 2)).tolist(), self._segmenter.thresholds.tolist()
        identity = {"cxr_id": cxr_id, "file": path, "height": height, "width": width}
        return [
            identity | {"pathology": name, "probability": round(p, 6), "threshold": round(cut, 6), "pixels": n, "share": round(n / height / width, 6)}
            for name, p, cut, n in zip(self._segmenter.pathologies, own.probability.tolist(), cuts, pixels, strict=True)
        ]


def read_xray(path: str) -> Any:
    """A PNG, JPEG or DICOM file as uint8 [height, width].

    Raises:
        ImageError: its bytes are no usable X-ray, or it is `missing`.
    """
    filesystem, where = open_filesystem(path, "IMAGE")
    try:
        with storage("read", path), filesystem.open_input_file(where) as stream:
            data = stream.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ImageError("missing") from None
    return decode_dicom(data) if is_dicom(data) else decode_grey(data)
