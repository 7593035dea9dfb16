"""Counts of pixels of one image's masks against the truth: what a model's, a reader's and a file's masks are all measured by."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chexseg_ray.artifacts import Record, Store
from chexseg_ray.data.images import content_box
from chexseg_ray.data.masks import Rle, decode_rle
from chexseg_ray.evaluation.iou import mask_counts

COUNTS = pa.schema(
    [(name, pa.string()) for name in ("cxr_id", "patient_id", "pathology", "resolution")]
    + [(name, pa.int64()) for name in ("intersection", "predicted", "truth")]
)
Masks = npt.NDArray[np.bool_]


def originals(store: Store, manifest: Record) -> dict[str, dict[str, Any]]:
    """{cxr_id: {cxr_id, patient_id, height, width, rle_original}} of a split with masks."""
    columns = ["cxr_id", "patient_id", "height", "width", "rle_original"]
    return {row["cxr_id"]: row for row in store.read_table(manifest, "manifest.parquet", columns).to_pylist()}


def count_rows(original: Mapping[str, Any], pathologies: Sequence[str], model: Masks, truth: Masks, whole: Masks) -> list[dict[str, Any]]:
    """The 2 K rows of one image.

    Args:
        original: its row of originals().
        pathologies: K names.
        model: predicted masks bool [K, S, S].
        truth: true masks bool [K, S, S].
        whole: predicted masks bool [K, height, width], at the image's own resolution.
    """
    height, width = original["height"], original["width"]
    box = content_box(height, width, model.shape[-1])
    small = mask_counts(model[:, box.rows, box.columns], truth[:, box.rows, box.columns])
    full = np.stack([decode_rle(Rle(height, width, counts)) for counts in original["rle_original"]])
    identity = {"cxr_id": original["cxr_id"], "patient_id": original["patient_id"]}
    return [
        identity | {"pathology": name, "resolution": resolution, "intersection": int(i), "predicted": int(p), "truth": int(t)}
        for resolution, counts in (("model", small), ("original", mask_counts(whole, full)))
        for name, (i, p, t) in zip(pathologies, counts, strict=True)
    ]
