"""CheXlocalize's evaluation, written anew from its description with pycocotools: an oracle that shares no code with the package.

Per pathology the mean IoU over images: with `true_pos_only` an image counts where prediction and truth both have a pixel, else where
either has. An image that the predictions lack has empty masks; one that only the predictions have has an empty truth.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco


def mean_iou(predictions: Mapping[str, Any], truth: Mapping[str, Any], pathology: str, true_pos_only: bool) -> float:
    values = []
    for cxr_id in {**truth, **predictions}:
        some = (truth.get(cxr_id) or predictions[cxr_id])[pathology]
        height, width = some["size"]
        nothing = np.zeros((height, width), dtype=bool)
        true, predicted = (
            coco.decode({"size": f[cxr_id][pathology]["size"], "counts": f[cxr_id][pathology]["counts"].encode()}).astype(bool)
            if cxr_id in f
            else nothing
            for f in (truth, predictions)
        )
        union = (true | predicted).sum()
        if not union or (true_pos_only and not (true.any() and predicted.any())):
            continue
        values.append((true & predicted).sum() / union)
    return float(np.mean(values)) if values else float("nan")
