"""Decode and letterbox the X-rays of one split (JPEG, PNG or DICOM), once, and its expert masks with them.

The step takes the split's manifest and the image files. It writes square images of S pixels a side, and, for splits
with expert masks, the masks at the same size. An image that cannot be decoded is a row of rejects.parquet; with too
many of them the step fails.

INPUT   manifest rows {cxr_id, path, height, width, rle_original[K]}, and image files
OUTPUT  images/part-*.parquet {cxr_id, height, width, pixels uint8[S, S], sha256}: the original size in pixels, and the
        hash of the image file;
        masks/part-*.parquet {cxr_id, height, width, rle[K]} for splits with expert masks, at S x S pixels;
        rejects.parquet {cxr_id, path, stage, reason}, which has no rows where every image is usable; the record's
        metrics count and name images with hardly any grey values, and those with other notes
FAN-OUT one task a group of 128 rows, which writes one part file of each kind; CPU only
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from chexseg_ray.data.images import ImageError, letterbox, letterbox_mask
from chexseg_ray.data.masks import Rle, decode_rle, encode_rle
from chexseg_ray.data.xrays import count_notes, decode_xray, note_lines
from chexseg_ray.engine import prometheus
from chexseg_ray.engine.execution import Made, Task
from chexseg_ray.engine.grouped import Row, files_of, group_slices, run_tasks
from chexseg_ray.engine.tables import GROUP_ROWS, image_schema, mask_schema, part_name, write_rejects
from chexseg_ray.errors import InputError
from chexseg_ray.progress import say
from chexseg_ray.stages.manifest import split_files
from chexseg_ray.store.filesystem import Source
from chexseg_ray.store.store import Attempt


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that determine the decoded images: the step's hashed config.

    Args:
        split: weak | expert_train | validation | test.
        size: S, pixels of a side.
        allow_modalities: modalities of DICOM files that are decoded too (data.dicom.decode_dicom).
    """

    split: str
    size: int
    allow_modalities: Sequence[str] = ()


def make(task: Task) -> Made:
    """Decode every row; an image that cannot be decoded becomes a row of rejects.parquet.

    Args:
        task: the step to make; its input is `manifest`.

    Returns:
        The part files of images and masks, and rejects.parquet; `rows` counts the decoded images, `rejects` the others.
        The metrics have `notes` (data.xrays.count_notes) if there are any; else there are none.

    Raises:
        InputError: too many images cannot be used, an image does not have the size of its masks, or one is a DICOM file
            and pydicom is not installed.
        TransientError: as run_tasks.
    """
    task.execution.start_ray()
    settings, manifest = Settings(**task.step.config), task.inputs["manifest"]
    csv_name, _ = split_files(settings.split, task.execution.files)
    folder = str(PurePosixPath(csv_name).parent)
    pathologies, allowed = list(manifest.config["pathologies"]), tuple(settings.allow_modalities)
    decode = DecodeGroup(task.attempt, task.open_source(), folder, pathologies, settings.size, allowed)
    table = task.store.read_table(manifest, "manifest.parquet", ["cxr_id", "path", "height", "width", "rle_original"])
    cpus = task.execution.compute.images.num_cpus
    results = run_tasks("images", f" ({settings.split}): groups decoded", row_groups(table), decode, cpus)
    rejects = [reject for result in results for reject in result["rejects"]]
    prometheus.record("rejects", len(rejects), stage="images")
    _refuse_too_many(task, settings.split, manifest.rows, rejects)
    files = [*files_of(results), write_rejects(task.attempt, rejects)]
    notes = count_notes((cxr_id, note) for result in results for cxr_id, note in result["notes"])
    for line in note_lines(notes):
        say(f"  note: images ({settings.split}): {line}")
    metrics = {"notes": notes} if notes else {}
    return Made(files, rows=manifest.rows - len(rejects), rejects=len(rejects), metrics=metrics)


def row_groups(table: pa.Table) -> Iterator[list[Row]]:
    """Yield the rows of `table`, a manifest, GROUP_ROWS at a time; the last group may be shorter."""
    for rows in group_slices(len(table), GROUP_ROWS):
        yield table.slice(rows.start, rows.stop - rows.start).to_pylist()


def _refuse_too_many(task: Task, split: str, total: int, rejects: list[dict[str, str]]) -> None:
    """Refuse any reject of an expert split that the config does not allow, and a share of rejects above its limit.

    One reject is always within the limit, unless it is the split's only image.

    Args:
        task: the step; its execution has the limits.
        split: the split's name.
        total: number of images of the split.
        rejects: rows of rejects.parquet.

    Raises:
        InputError: gives the number of rejects and the first ten.
    """
    first = "; ".join(f"{reject['path']} {reject['reason']}" for reject in rejects[:10])
    if split != "weak" and rejects and not task.execution.allow_expert_rejects:
        what = f"{len(rejects)} of {total} images of the split {split!r} cannot be used ({first})"
        raise InputError(f"{what}: repair the files{_allow(rejects)}, or set data.allow_expert_rejects=true")
    if len(rejects) > max(1.0, task.execution.max_reject_fraction * total) or len(rejects) == total:
        what = f"{len(rejects)} of {total} images cannot be used ({first})"
        raise InputError(f"{what}: repair the files{_allow(rejects)}, or raise data.max_reject_fraction")


def _allow(rejects: list[dict[str, str]]) -> str:
    """The remedy for DICOM files that say that they are no X-rays, if there are any among the rejects."""
    return ", name their modality in data.allow_modalities" if any(r["reason"] == "modality" for r in rejects) else ""


@dataclass
class DecodeGroup:
    """Decodes groups of the manifest's rows, and writes their part files.

    Args:
        attempt: where they are written.
        source: the data root.
        folder: the folder of the split's CSV below the data root; paths in the CSV are relative to it.
        pathologies: K names.
        size: S, pixels of a side.
        allowed: modalities of DICOM files that are decoded too.
    """

    attempt: Attempt
    source: Source
    folder: str
    pathologies: list[str]
    size: int
    allowed: tuple[str, ...] = ()

    def __call__(self, group: int, rows: list[Row]) -> Row:
        """Decode one group.

        Args:
            group: its number, which is that of its part files.
            rows: its manifest rows.

        Returns:
            {files, rejects, notes, rows}: entries of the part files, rows of rejects.parquet, (cxr_id, note) pairs,
            number of decoded images.
        """
        images, masks, rejects, notes = [], [], [], []
        for row in rows:
            try:
                image, mask, about = self._decode(row)
            except ImageError as error:
                rejects.append(
                    {"cxr_id": row["cxr_id"], "path": row["path"], "stage": "images", "reason": error.reason}
                )
                continue
            images.append(image)
            notes += [(row["cxr_id"], note) for note in about]
            if mask:
                masks.append(mask)
        files = []
        if images:
            image_table = pa.Table.from_pylist(images, schema=image_schema(self.size))
            files.append(self.attempt.write_table(part_name("images", group), image_table))
        if masks:
            mask_table = pa.Table.from_pylist(masks, schema=mask_schema(self.pathologies, self.size))
            files.append(self.attempt.write_table(part_name("masks", group), mask_table))
        return {"files": files, "rejects": rejects, "notes": notes, "rows": len(images)}

    def _decode(self, row: dict[str, Any]) -> tuple[Row, Row | None, tuple[str, ...]]:
        """Decode one image.

        Args:
            row: its manifest row.

        Returns:
            Its row of images/, its row of masks/ or None where it has no expert masks, and notes.

        Raises:
            ImageError: the file is missing or no usable image.
            InputError: the image does not have the size of its masks.
        """
        try:
            data = self.source.read(f"{self.folder}/{row['path']}")
        except FileNotFoundError:
            raise ImageError("missing") from None
        decoded = decode_xray(data, allowed=self.allowed)
        grey = decoded.grey
        height, width = grey.shape
        identity = {"cxr_id": row["cxr_id"], "height": height, "width": width}
        image = identity | {"pixels": letterbox(grey, self.size).tobytes(), "sha256": hashlib.sha256(data).hexdigest()}
        if row["rle_original"] is None:
            return image, None, decoded.notes
        if (row["height"], row["width"]) != (height, width):
            sizes = f"its masks are {row['height']} x {row['width']} pixels, the image {height} x {width}"
            raise InputError(f"{row['cxr_id']}: {sizes}: correct the mask file")
        masks = [decode_rle(Rle(height, width, counts)) for counts in row["rle_original"]]
        rles = [encode_rle(letterbox_mask(mask, self.size)) for mask in masks]
        return image, identity | {"rle": rles}, decoded.notes
