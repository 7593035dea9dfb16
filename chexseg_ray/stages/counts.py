"""Count the pixels of one image's masks against the expert masks, at two resolutions.

This is not a kind of step. The steps `evaluation` (a network's masks) and `benchmark` (another reader's masks) both
count with it, and both write the rows to counts.parquet, with the columns of COUNTS.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chexseg_ray.data.images import content_box
from chexseg_ray.data.masks import Rle, decode_rle
from chexseg_ray.evaluation.iou import mask_counts
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store

COUNTS = pa.schema(
    [(name, pa.string()) for name in ("cxr_id", "patient_id", "pathology", "resolution")]
    + [(name, pa.int64()) for name in ("intersection", "predicted", "truth")]
)
Masks = npt.NDArray[np.bool_]
Counts = tuple[int, int, int]  # pixels of intersection, prediction and truth


def originals(store: Store, manifest: Record) -> dict[str, dict[str, Any]]:
    """Read the sizes and the expert masks at original resolution of a split with masks.

    Args:
        store: holds the record's files.
        manifest: the record of the split's manifest.

    Returns:
        {cxr_id: {cxr_id, patient_id, height, width, rle_original}}; the last has the run lengths of K masks.
    """
    columns = ["cxr_id", "patient_id", "height", "width", "rle_original"]
    return {row["cxr_id"]: row for row in store.read_table(manifest, "manifest.parquet", columns).to_pylist()}


def count_rows(
    original: Mapping[str, Any],
    pathologies: Sequence[str],
    model: Masks,
    truth: Masks,
    whole: Callable[[int], Masks | bool],
    map_: Callable[[Callable[[int], Counts], range], Iterable[Counts]] = map,
) -> list[dict[str, Any]]:
    """Count the pixels of one image's masks. At model resolution, only the image's content is counted, not its padding.

    Args:
        original: the image's row of originals().
        pathologies: K names.
        model: predicted masks bool [K, S, S].
        truth: expert masks bool [K, S, S].
        whole: returns the predicted mask of pathology k at the image's own resolution, bool [height, width]; or False
            for an empty and True for a full one.
        map_: like map, for the pathologies at the image's own resolution; may use threads.

    Returns:
        2 K rows with the columns of COUNTS: all pathologies at resolution `model`, then all at `original`.
    """
    height, width = original["height"], original["width"]
    box = content_box(height, width, model.shape[-1])
    model_counts = mask_counts(model[:, box.rows, box.columns], truth[:, box.rows, box.columns]).tolist()

    def count(k: int) -> Counts:
        return pair_counts(whole(k), Rle(height, width, original["rle_original"][k]))

    original_counts = map_(count, range(len(pathologies)))
    rows = []
    for resolution, counts in (("model", model_counts), ("original", original_counts)):
        for pathology, (intersection, predicted, true) in zip(pathologies, counts, strict=True):
            rows.append(
                {
                    "cxr_id": original["cxr_id"],
                    "patient_id": original["patient_id"],
                    "pathology": pathology,
                    "resolution": resolution,
                    "intersection": intersection,
                    "predicted": predicted,
                    "truth": true,
                }
            )
    return rows


def pair_counts(predicted: Masks | bool, truth: Rle) -> Counts:
    """Count the pixels of a predicted and an expert mask, without arrays where one of them is empty or full.

    Args:
        predicted: bool [height, width]; or False for an empty and True for a full mask.
        truth: the expert mask.

    Returns:
        Pixels of intersection, prediction and truth.
    """
    if isinstance(predicted, bool):
        return (truth.area, truth.height * truth.width, truth.area) if predicted else (0, 0, truth.area)
    count = int(np.count_nonzero(predicted))
    if not truth.area:
        return 0, count, 0
    return int(np.count_nonzero(predicted & decode_rle(truth))), count, truth.area
