"""CheXlocalize's evaluation, written from its description with pycocotools: an oracle without code of the package."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco


def mean_iou(predictions: Mapping[str, Any], truth: Mapping[str, Any], pathology: str, true_pos_only: bool) -> float:
    """Return the mean IoU of a pathology over images, NaN if no image counts.

    An image that the predictions lack has empty masks; one that only the predictions have has an empty truth.

    Args:
        predictions: the exchange format, {cxr_id: {pathology: {size, counts}}}.
        truth: the same.
        pathology: which one.
        true_pos_only: an image counts if prediction and truth both have a pixel; otherwise, if one of them has.
    """
    values = []
    for cxr_id in {**truth, **predictions}:
        size = (truth.get(cxr_id) or predictions[cxr_id])[pathology]["size"]
        true, predicted = _mask(truth, cxr_id, pathology, size), _mask(predictions, cxr_id, pathology, size)
        union = (true | predicted).sum()
        if not union or (true_pos_only and not (true.any() and predicted.any())):
            continue
        values.append((true & predicted).sum() / union)
    return float(np.mean(values)) if values else float("nan")


def _mask(entries: Mapping[str, Any], cxr_id: str, pathology: str, size: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Decode a mask, bool [height, width]; an image without an entry has an empty one of this size."""
    if cxr_id not in entries:
        return np.zeros(tuple(size), dtype=bool)
    rle = entries[cxr_id][pathology]
    decoded: npt.NDArray[np.uint8] = coco.decode({"size": rle["size"], "counts": rle["counts"].encode()})
    return decoded.astype(bool)
