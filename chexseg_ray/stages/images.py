"""Decode and letterbox the X-rays of one split, once, and its expert masks with them.

INPUT   manifest rows {cxr_id, path, height, width, rle_original[K]} and image files
OUTPUT  images/part-*.parquet {cxr_id, height, width, pixels u8[S, S], sha256}; for annotated splits
        masks/part-*.parquet {cxr_id, height, width, rle[K]}; rejects.parquet {cxr_id, path, stage, reason}
FAN-OUT one task a group of rows; CPU only
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from chexseg_ray.artifacts import Attempt, FileEntry
from chexseg_ray.data.images import ImageError, decode_grey, letterbox, letterbox_mask
from chexseg_ray.data.masks import Rle, decode_rle, encode_rle
from chexseg_ray.errors import InputError
from chexseg_ray.stages import metrics
from chexseg_ray.stages.execution import Made, Source, Task
from chexseg_ray.stages.grouped import Row, group_slices, run_tasks
from chexseg_ray.stages.tables import GROUP_ROWS, image_schema, mask_schema, part_name, write_rejects


def make(task: Task) -> Made:
    """Decode every row; what cannot be decoded goes to rejects.parquet."""
    task.execution.start_ray()
    split, size = task.step.config["split"], task.step.config["size"]
    files = task.execution.files
    csv_name = files["weak_csv" if split == "weak" else "test_csv" if split == "test" and files["test_csv"] else "expert_csv"]
    assert csv_name is not None
    manifest = task.inputs["manifest"]
    folder = str(PurePosixPath(csv_name).parent)
    decode = DecodeGroup(task.attempt, task.open_source(), folder, list(manifest.config["pathologies"]), size)
    columns = ["cxr_id", "path", "height", "width", "rle_original"]
    items = group_items(task.store.read_table(manifest, "manifest.parquet", columns))
    rows = run_tasks("images", f" ({split}): groups decoded", items, decode, task.execution.images_cpus)
    entries = [FileEntry(*entry) for row in rows for entry in row["files"]]
    rejects = [reject for row in rows for reject in row["rejects"]]
    metrics.record("rejects", len(rejects), stage="images")
    _refuse_too_many(task, split, manifest.rows, rejects)
    entries.append(write_rejects(task.attempt, rejects))
    return Made(entries, rows=manifest.rows - len(rejects), rejects=len(rejects))


def group_items(table: pa.Table) -> list[Row]:
    """One item a group of a manifest's rows, as JSON; a slice at a time, so that 1,000,000 rows are never objects all at once."""
    slices = group_slices(len(table), GROUP_ROWS)
    return [{"group": i, "rows": json.dumps(table.slice(rows.start, rows.stop - rows.start).to_pylist())} for i, rows in enumerate(slices)]


def _refuse_too_many(task: Task, split: str, total: int, rejects: list[dict[str, str]]) -> None:
    first = "; ".join(f"{r['path']} {r['reason']}" for r in rejects[:10])
    if split != "weak" and rejects and not task.execution.allow_expert_rejects:
        raise InputError(
            f"{len(rejects)} of {total} images of the split {split!r} cannot be used ({first}): mend them, or set data.allow_expert_rejects=true"
        )
    if len(rejects) > max(1.0, task.execution.max_reject_fraction * total) or len(rejects) == total:
        raise InputError(f"{len(rejects)} of {total} images cannot be used ({first}): mend them, or raise data.max_reject_fraction")


@dataclass
class DecodeGroup:
    """Decodes one group of the manifest's rows and writes its parts."""

    attempt: Attempt
    source: Source
    folder: str
    pathologies: list[str]
    size: int

    def __call__(self, row: Row) -> Row:
        group = int(row["group"])
        images, masks, rejects = [], [], []
        for item in json.loads(row["rows"]):
            try:
                image, mask = self._decode(item)
            except ImageError as error:
                rejects.append({"cxr_id": item["cxr_id"], "path": item["path"], "stage": "images", "reason": error.reason})
                continue
            images.append(image)
            masks += [mask] if mask else []
        parts = (("images", images, image_schema(self.size)), ("masks", masks, mask_schema(self.pathologies, self.size)))
        tables = [(part_name(name, group), pa.Table.from_pylist(rows, schema=schema)) for name, rows, schema in parts if rows]
        entries = [self.attempt.write_table(name, part) for name, part in tables]
        return {"files": [[e.path, e.size, e.sha256] for e in entries], "rejects": rejects, "rows": len(images)}

    def _decode(self, item: dict[str, Any]) -> tuple[Row, Row | None]:
        where = f"{self.folder}/{item['path']}"
        try:
            data = self.source.read(where)
        except FileNotFoundError:
            raise ImageError("missing") from None
        grey = decode_grey(data)
        height, width = grey.shape
        identity = {"cxr_id": item["cxr_id"], "height": height, "width": width}
        image = identity | {"pixels": letterbox(grey, self.size).tobytes(), "sha256": hashlib.sha256(data).hexdigest()}
        if item["rle_original"] is None:
            return image, None
        if (item["height"], item["width"]) != (height, width):
            raise InputError(
                f"{item['cxr_id']}: its masks are {item['height']} x {item['width']} pixels, the image {height} x {width}: correct the mask file"
            )
        rles = [encode_rle(letterbox_mask(decode_rle(Rle(height, width, counts)), self.size)) for counts in item["rle_original"]]
        return image, identity | {"rle": rles}
