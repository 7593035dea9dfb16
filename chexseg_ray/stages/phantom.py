"""Draw the phantom data set, which replaces CheXpert and CheXlocalize where the user names no data.

The step takes only the config section data.phantom, and writes a data root: what a user's own data folder would hold.
The steps `manifest`, `images` and `benchmark` read it like one.

INPUT   the phantom config
OUTPUT  CheXpert-v1.0/{train,valid,test_labels}.csv in CheXpert's format, with the images as JPEGs below that folder;
        CheXlocalize/{gt_segmentations_val,gt_segmentations_test,hb_segmentations_test}.json, the masks of images with
        findings: the truth, and for the test images also a second reader's; LICENSE.txt
FAN-OUT one task a group of images; CPU only
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from chexseg_ray.data import phantom
from chexseg_ray.data.masks import exchange_entry, exchange_json
from chexseg_ray.engine.execution import Made, Task
from chexseg_ray.engine.grouped import Row, files_of, group_slices, run_tasks
from chexseg_ray.engine.tables import GROUP_ROWS
from chexseg_ray.store.store import Attempt

_SPLIT_OF_CSV = {phantom.WEAK_CSV: "train", phantom.EXPERT_CSV: "valid", phantom.TEST_CSV: "test"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that determine the phantoms: the step's hashed config, as in config.data.PhantomConfig."""

    num_train_patients: int
    num_expert_images: int
    num_test_images: int
    long_side: int
    seed: int


def make(task: Task) -> Made:
    """Draw all images and masks, and write the files into the attempt.

    Args:
        task: the step to make; it has no inputs.

    Returns:
        The files of a data root: CSVs, mask files, licence and JPEGs; `rows` counts the images. There are no metrics.

    Raises:
        InputError, TransientError: as run_tasks.
    """
    task.execution.start_ray()
    settings = Settings(**task.step.config)
    images = phantom.plan_phantom(
        num_train_patients=settings.num_train_patients,
        num_expert_images=settings.num_expert_images,
        num_test_images=settings.num_test_images,
        seed=settings.seed,
    )
    groups = [(group.start, group.stop) for group in group_slices(len(images), GROUP_ROWS)]
    work = partial(_draw_group, images=images, long_side=settings.long_side, attempt=task.attempt)
    results = run_tasks("phantom", ": groups of images drawn", groups, work, task.execution.compute.images.num_cpus)
    truth = {cxr_id: entry for result in results for cxr_id, entry in result["truth"].items()}
    second = {cxr_id: entry for result in results for cxr_id, entry in result["second"].items()}
    texts = {path: phantom.csv_text(images, split) for path, split in _SPLIT_OF_CSV.items()}
    for path, split, masks in (
        (phantom.EXPERT_MASKS, "valid", truth),
        (phantom.TEST_MASKS, "test", truth),
        (phantom.SECOND_READER, "test", second),
    ):
        annotated = [image.cxr_id for image in images if image.split == split and image.findings]
        texts[path] = exchange_json({cxr_id: masks[cxr_id] for cxr_id in annotated})
    texts["LICENSE.txt"] = phantom.LICENCE + "\n"
    files = [*files_of(results), *(task.attempt.write(path, text.encode()) for path, text in texts.items())]
    return Made(files, rows=len(images))


def _draw_group(
    _: int, rows: Sequence[int], images: list[phantom.PhantomImage], long_side: int, attempt: Attempt
) -> Row:
    """Draw one group of images, and write them as JPEGs.

    Args:
        rows: the group's first image, and the one behind its last.
        images: all images of the data set.
        long_side: pixels of an image's longer side.
        attempt: where the JPEGs are written.

    Returns:
        {files, rows, truth, second}; the last two are CheXlocalize's entries of the truth and of the second reader, by
        cxr_id, without the images of train.csv.
    """
    files, truths, seconds = [], {}, {}
    start, stop = rows
    for image in images[start:stop]:
        grey, truth, second = phantom.render(image, long_side)
        stream = BytesIO()
        Image.fromarray(grey).save(stream, "JPEG", quality=92)
        files.append(attempt.write(image.path, stream.getvalue()))
        if image.split != "train":
            truths[image.cxr_id], seconds[image.cxr_id] = _entry(truth), _entry(second)
    return {"files": files, "truth": truths, "second": seconds, "rows": len(files)}


def _entry(masks: dict[str, npt.NDArray[np.bool_]]) -> dict[str, dict[str, object]]:
    """CheXlocalize's entry of one image's masks, bool [height, width] by pathology."""
    return exchange_entry(list(masks), np.stack(list(masks.values())))
