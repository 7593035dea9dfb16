"""Predict X-rays from files.

INPUT   files {cxr_id, place, path, shown, stamp, fault}: PNG, JPEG or DICOM, on any file system of pyarrow
OUTPUT  overlays/{cxr_id}.png; of each group entries of CheXlocalize's exchange format, areas {cxr_id, file, height,
        width, pathology, probability, threshold, pixels, share}, rejects {cxr_id, file, reason} and notes {cxr_id,
        file, note}; with many files also .chexseg_ray_parts/{hash}.json, one per group, until all are done
FAN-OUT one result per group of files; a plain loop for few files, actors that each hold the network for many
"""

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import astuple
from typing import Any

import pyarrow.fs as pafs
import torch

from chexseg_ray.config.resources import ActorCompute
from chexseg_ray.data.images import Decoded, ImageError
from chexseg_ray.data.masks import exchange_entry
from chexseg_ray.data.overlays import overlay_png
from chexseg_ray.data.xrays import decode_xray
from chexseg_ray.engine.grouped import Row, group_slices, run_actors
from chexseg_ray.predict.card import NOTICE, ExportedModel, open_model
from chexseg_ray.segmentation.inference import BATCH, Segmented
from chexseg_ray.store.filesystem import ABSENT, storage
from chexseg_ray.store.store import Store

PARTS = ".chexseg_ray_parts"
_PART = re.compile(r"[0-9a-f]{24}\.json(\.[0-9a-f]{8}\.tmp)?")
MANY = 64  # files; with fewer, starting Ray takes longer than it saves
MOST_PIXELS = 40_000_000  # of an X-ray: ten masks at full size and their overlay then take 0.9 GB and 13 s


def predict_files(
    model: ExportedModel,
    x_rays: Any,
    out: Store,
    resources: ActorCompute,
    start_ray: Callable[[], None],
    allowed: Sequence[str] = (),
) -> Iterator[Row]:
    """Predict files and draw their overlays into `out`.

    Args:
        model: card and weights.
        x_rays: `files` (cxr_id, place, path, shown, stamp, fault) and `filesystems` by place.
        out: gets overlays/{cxr_id}.png and, with many files, the parts. Parts of other files or of another model are
            deleted, since their overlays would not fit.
        resources: of the actors, with many files; of this process, with few.
        start_ray: called before the first actor starts.
        allowed: modalities of DICOM files that are predicted too (data.dicom.decode_dicom).

    Returns:
        {entries: {cxr_id: exchange entry}, areas: [...], rejects: [...], notes: [...]} of each group of files, in their
        order.

    Raises:
        InputError: the weights do not fit the card (open_model).
    """
    files = [astuple(x_ray) for x_ray in x_rays.files]
    groups: list[Row] = [{"files": files[rows]} for rows in group_slices(len(files), BATCH)]
    if len(files) < MANY:
        drop_parts(out)
        actor = FileActor(model, x_rays.filesystems, out, resources, allowed)
        return (actor(group, []) for group in groups)
    model_name = hashlib.sha256(
        json.dumps(model.card, sort_keys=True).encode() + hashlib.sha256(model.weights).digest()
    ).hexdigest()
    for group in groups:
        name = hashlib.sha256((model_name + json.dumps([group["files"], sorted(allowed)])).encode()).hexdigest()[:24]
        group["part"] = f"{PARTS}/{name}.json"
    drop_parts(out, keep={group["part"] for group in groups})
    missing = _missing(out, groups)
    if missing:
        start_ray()
        arguments = (model, x_rays.filesystems, out, resources, tuple(allowed))
        cpus = resources.num_cpus
        run_actors(
            "predict", ": groups of files predicted", missing, _no_files_to_read, FileActor, arguments, resources, cpus
        )
    return (json.loads(out.get(group["part"])) for group in groups)


def drop_parts(out: Store, keep: Container[str] = ()) -> None:
    """Delete the parts of groups, and their folder if nothing is left in it.

    Args:
        out: the folder or URI of the predictions.
        keep: paths in `out` of the parts that stay.
    """
    parts = [f"{PARTS}/{name}" for name in out.names(PARTS) if _PART.fullmatch(name)]
    for part in parts:
        if part not in keep:
            out.delete(part)
    if parts and not out.names(PARTS):
        out.delete(PARTS)


def _missing(out: Store, groups: Sequence[Row]) -> list[Row]:
    """The groups that have no part, or one of whose overlays is missing."""
    parts, overlays = ({f"{folder}/{name}" for name in out.names(folder)} for folder in (PARTS, "overlays"))

    def is_whole(group: Row) -> bool:
        """Whether a group's part and all of its overlays exist."""
        if group["part"] not in parts:
            return False
        entries = json.loads(out.get(group["part"]))["entries"]
        return all(f"overlays/{cxr_id}.png" in overlays for cxr_id in entries)

    return [group for group, whole in zip(groups, out.side_by_side(is_whole, groups), strict=True) if not whole]


def _no_files_to_read(_: Row) -> list[bytes]:
    """No files: the actor itself reads each X-ray right before it decodes it."""
    return []


class FileActor:
    """Holds a network; reads, predicts and draws one group of files per call.

    Args:
        model: card and weights.
        filesystems: of pyarrow, by number.
        out: gets the overlays and the groups' parts.
        resources: of this process.
        allowed: modalities of DICOM files that are predicted too.

    Raises:
        InputError: the weights do not fit the card (open_model).
    """

    def __init__(
        self,
        model: ExportedModel,
        filesystems: Sequence[pafs.FileSystem],
        out: Store,
        resources: ActorCompute,
        allowed: Sequence[str] = (),
    ) -> None:
        torch.set_num_threads(resources.threads)
        self._segmenter = open_model(model, resources.num_gpus)
        self._filesystems, self._out = filesystems, out
        self._allowed = allowed

    def __call__(self, group: Row, _: list[bytes]) -> Row:
        """Predict one group.

        Args:
            group: `files` as in predict_files, and `part`, the path of the group's part, where it has one.

        Returns:
            {entries, areas, rejects, notes}; where the group has a part, these are written to it, and {rows} is
            returned.
        """
        accepted, rejects, notes = [], [], []
        for cxr_id, number, path, shown, _stamp, fault in group["files"]:
            try:
                if fault:
                    raise ImageError(fault)
                image = read_xray(self._filesystems[number], path, self._allowed)
                accepted.append((cxr_id, shown, image.grey))
                notes += [{"cxr_id": cxr_id, "file": shown, "note": note} for note in image.notes]
            except ImageError as error:
                rejects.append({"cxr_id": cxr_id, "file": shown, "reason": error.reason})
                self._out.delete(f"overlays/{cxr_id}.png")  # of an earlier run
        names = self._segmenter.pathologies
        areas: list[dict[str, Any]] = []
        entries: dict[str, Any] = {}
        predictions = self._segmenter.images([grey for *_, grey in accepted]) if accepted else iter(())
        for (cxr_id, shown, grey), found in zip(accepted, predictions, strict=True):
            labels = [f"{name} {p:.2f}" for name, p in zip(names, found.probability, strict=True)]
            self._out.put(f"overlays/{cxr_id}.png", overlay_png(grey, found.masks, labels, NOTICE))
            entries[cxr_id] = exchange_entry(names, found.masks)
            areas += self._areas(cxr_id, shown, found)
        result = {"entries": entries, "areas": areas, "rejects": rejects, "notes": notes}
        if "part" not in group:
            return result
        self._out.put(group["part"], json.dumps(result).encode())
        return {"rows": len(accepted)}

    def _areas(self, cxr_id: str, shown: str, found: Segmented) -> list[dict[str, Any]]:
        """The rows of areas.csv of one X-ray, one per pathology."""
        height, width = found.masks.shape[1:]
        probabilities, thresholds = found.probability.tolist(), self._segmenter.thresholds.tolist()
        pixels = found.masks.sum(axis=(1, 2)).tolist()
        identity = {"cxr_id": cxr_id, "file": shown, "height": height, "width": width}
        names = self._segmenter.pathologies
        return [
            identity
            | {
                "pathology": name,
                "probability": round(p, 6),
                "threshold": round(threshold, 6),
                "pixels": n,
                "share": round(n / height / width, 6),
            }
            for name, p, threshold, n in zip(names, probabilities, thresholds, pixels, strict=True)
        ]


def read_xray(filesystem: pafs.FileSystem, path: str, allowed: Sequence[str] = ()) -> Decoded:
    """Read a PNG, JPEG or DICOM file.

    Args:
        filesystem: of pyarrow.
        path: in that file system.
        allowed: modalities of DICOM files that are read too.

    Returns:
        The image, and notes on it.

    Raises:
        ImageError: the file is missing (`missing`), or its bytes are no usable X-ray.
        TransientError: the storage does not answer.
    """
    try:
        with storage("read", path), filesystem.open_input_file(path) as stream:
            data = stream.read()
    except ABSENT:
        raise ImageError("missing") from None
    return decode_xray(data, MOST_PIXELS, allowed)
