"""Write the phantom data set.

INPUT   nothing but the phantom config
OUTPUT  a CheXpert + CheXlocalize folder: CSVs, JPEGs, mask JSONs, LICENSE.txt
FAN-OUT one task a group of images; CPU only
"""

from functools import partial
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from chexseg_ray.artifacts import Attempt, FileEntry
from chexseg_ray.data import phantom
from chexseg_ray.data.masks import exchange_entry, exchange_json
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.grouped import Row, group_slices, run_tasks
from chexseg_ray.stages.tables import GROUP_ROWS


def make(task: Task) -> Made:
    """Draw everything and write it into the attempt."""
    task.execution.start_ray()
    config = dict(task.step.config)
    long_side = config.pop("long_side")
    images = phantom.plan_phantom(**config)
    items = [{"group": i} for i, _ in enumerate(group_slices(len(images), GROUP_ROWS))]
    work = partial(_draw_group, images=images, long_side=long_side, attempt=task.attempt)
    rows = run_tasks("phantom", ": groups of images drawn", items, work, task.execution.images_cpus)
    files = [FileEntry(*entry) for row in rows for entry in row["files"]]
    truth = {name: entry for row in rows for name, entry in row["truth"].items()}
    second = {name: entry for row in rows for name, entry in row["second"].items()}
    texts = {path: phantom.csv_text(images, split) for path, split in _CSVS.items()}
    for path, split, masks in (
        (phantom.EXPERT_MASKS, "valid", truth),
        (phantom.TEST_MASKS, "test", truth),
        (phantom.SECOND_READER, "test", second),
    ):
        texts[path] = exchange_json({i.cxr_id: masks[i.cxr_id] for i in images if i.split == split and i.findings})
    texts["LICENSE.txt"] = phantom.LICENCE + "\n"
    files += [task.attempt.write(path, text.encode()) for path, text in texts.items()]
    return Made(files, rows=len(images))


_CSVS = {phantom.WEAK_CSV: "train", phantom.EXPERT_CSV: "valid", phantom.TEST_CSV: "test"}


def _draw_group(row: Row, images: list[phantom.PhantomImage], long_side: int, attempt: Attempt) -> Row:
    files, truths, seconds = [], {}, {}
    for image in images[group_slices(len(images), GROUP_ROWS)[row["group"]]]:
        grey, truth, second = phantom.render(image, long_side)
        stream = BytesIO()
        Image.fromarray(grey).save(stream, "JPEG", quality=92)
        entry = attempt.write(image.path, stream.getvalue())
        files.append([entry.path, entry.size, entry.sha256])
        if image.split != "train":
            truths[image.cxr_id], seconds[image.cxr_id] = _entry(truth), _entry(second)
    return {"files": files, "truth": truths, "second": seconds, "rows": len(files)}


def _entry(masks: dict[str, npt.NDArray[np.bool_]]) -> dict[str, dict[str, object]]:
    return exchange_entry(list(masks), np.stack(list(masks.values())))
