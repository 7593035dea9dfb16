"""Compare another reader's masks of the test images with the expert masks, as the networks' predictions are compared.

The step takes a CheXlocalize segmentation or annotation file (config field data.benchmark_masks), checks that it is
about images of the test split and of their sizes, and counts pixels at the model's and at the original resolution. An
image that is missing in the file counts as one with empty masks.

INPUT   the file; the test split's manifest with masks at original resolution, and its masks at model resolution
OUTPUT  counts.parquet {cxr_id, patient_id, pathology, resolution: model | original, intersection, predicted, truth},
        the last three int64 in pixels; `predicted` is the other reader, `truth` the expert
FAN-OUT 2 K rows an image; one task a group of images; CPU only
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chexseg_ray.data.images import letterbox_mask
from chexseg_ray.data.masks import Rle, decode_rle
from chexseg_ray.engine.execution import Made, Task
from chexseg_ray.engine.grouped import Row, group_slices, run_tasks
from chexseg_ray.engine.pool import load_masks, unpack_masks
from chexseg_ray.engine.source_tables import SourceTables
from chexseg_ray.errors import InputError, shortened
from chexseg_ray.stages.counts import COUNTS, count_rows, originals
from chexseg_ray.store.filesystem import Source
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store

_GROUP_IMAGES = 32  # a task counts their masks at original resolution in a minute at CheXpert's sizes


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that determine the comparison: the step's hashed config.

    Args:
        pathologies: K names, in channel order.
        size: S, pixels of a side at model resolution.
        columns: {the name here: the names that the file may use for it, preferred first}.
        files: the file's path below the phantom's folder; empty where the user has the data. It identifies the file.
        sha256: the hash of the user's file; empty for the phantom. It identifies the file.
    """

    pathologies: Sequence[str]
    size: int
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Sequence[str] = ()
    sha256: str = ""


def make(task: Task) -> Made:
    """Read and check the file, and count every test image.

    Args:
        task: the step to make; its inputs are `manifest_test` and `images_test`.

    Returns:
        counts.parquet; `rows` is 2 K for each test image. The metrics are the number of test images (`images`), of
        those that the file does not have (`absent`), and of the file's images that are not test images (`not_in_test`).

    Raises:
        InputError, TransientError: as read_benchmark and run_tasks.
    """
    settings, manifest, images = Settings(**task.step.config), task.inputs["manifest_test"], task.inputs["images_test"]
    name, execution = task.execution.files["benchmark_masks"], task.execution
    found = read_benchmark(execution.tables, task.open_source(), name, settings, task.store, manifest)
    ids = sorted(task.store.read_tables(images, "masks/", ["cxr_id"]).column("cxr_id").to_pylist())
    execution.start_ray()

    def run_lengths(cxr_id: str) -> list[str]:
        """Return the run lengths of an image's K masks; each is an empty text if the image is missing in the file."""
        if cxr_id not in found:
            return [""] * len(settings.pathologies)
        return [found[cxr_id][pathology].counts for pathology in settings.pathologies]

    payloads = ({cxr_id: run_lengths(cxr_id) for cxr_id in ids[part]} for part in group_slices(len(ids), _GROUP_IMAGES))
    work = partial(_count, store=task.store, manifest=manifest, images=images, settings=settings)
    results = run_tasks("benchmark", ": groups of images compared", payloads, work, execution.compute.images.num_cpus)
    rows = [row for result in results for row in result["counts"]]
    absent = [cxr_id for cxr_id in ids if cxr_id not in found]
    metrics = {"images": len(ids), "absent": len(absent), "not_in_test": len(set(found) - set(ids))}
    table = pa.Table.from_pylist(rows, schema=COUNTS)
    return Made([task.attempt.write_table("counts.parquet", table)], rows=len(rows), metrics=metrics)


def read_benchmark(
    tables: SourceTables, source: Source, name: str | None, settings: Settings, store: Store, manifest: Record
) -> dict[str, dict[str, Rle]]:
    """Read the other reader's masks, and check them against the test split.

    Args:
        tables: the files that were parsed so far.
        source: the data root.
        name: the file's path below it; never None where a study has this step.
        settings: the step's settings.
        store: holds the manifest.
        manifest: the record of the test split's manifest.

    Returns:
        {cxr_id: {pathology: mask at original resolution}} of all images in the file.

    Raises:
        InputError: the file is not there, is not in CheXlocalize's format, has masks of no test image, or has masks of
            another size than the expert's.
    """
    assert name is not None
    found = tables.masks(source, name, settings.pathologies, settings.columns)
    _refuse_other_sizes(found, originals(store, manifest), name)
    return found


def _refuse_other_sizes(found: Mapping[str, Mapping[str, Rle]], images: Mapping[str, Row], name: str) -> None:
    """Refuse a file without any test image, or with masks of another size than the expert's.

    Args:
        found: the file's masks by cxr_id and pathology.
        images: the test images' rows, as originals() returns them.
        name: the file's name, for the message.

    Raises:
        InputError: names the file, the first such image and the sizes.
    """
    both = sorted(set(found) & set(images))
    if not both:
        raise InputError(f"{name}: has masks of none of the {len(images)} test images: correct data.benchmark_masks")
    for cxr_id in both:
        rle, image = next(iter(found[cxr_id].values())), images[cxr_id]
        if (rle.height, rle.width) != (image["height"], image["width"]):
            rule = f"its masks are {rle.height} x {rle.width} pixels, the expert's {image['height']} x {image['width']}"
            raise InputError(f"{name}: '{shortened(cxr_id, 300)}': {rule}: correct the file")


def _count(
    _: int, found: dict[str, list[str]], store: Store, manifest: Record, images: Record, settings: Settings
) -> Row:
    """Count the pixels of one group of images.

    Args:
        found: {cxr_id: run lengths of each pathology's mask, an empty text for no mask}.
        store: holds the records' files.
        manifest: the record of the test split's manifest.
        images: the record of the test images.
        settings: the step's settings.

    Returns:
        {rows: the number of images, counts: their rows of COUNTS}.
    """
    wanted, size = originals(store, manifest), settings.size
    truth = load_masks(store, images, size, list(found))
    counts: list[Row] = []
    for cxr_id, rles in found.items():
        image = wanted[cxr_id]
        whole = [_decode_mask(image["height"], image["width"], text) for text in rles]
        small = np.stack([letterbox_mask(mask, size) for mask in whole])
        expert = unpack_masks(truth.gather([cxr_id]), size)[0]
        counts += count_rows(image, settings.pathologies, small, expert, whole.__getitem__)
    return {"rows": len(found), "counts": counts}


def _decode_mask(height: int, width: int, counts: str) -> npt.NDArray[np.bool_]:
    """The mask bool [height, width] of run lengths; an empty mask where the text is empty."""
    if not counts:
        return np.zeros((height, width), dtype=bool)
    return decode_rle(Rle(height, width, counts))
