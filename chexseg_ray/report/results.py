"""From records to numbers: IoU of every point, and mean with interval over its trials. Reads the store alone, no Ray."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from chexseg_ray.artifacts import Record, Store
from chexseg_ray.evaluation.intervals import Interval, t_interval
from chexseg_ray.evaluation.iou import per_image_iou, pooled_iou
from chexseg_ray.pipeline import Study, SweepPoint

AGGREGATIONS = ("pooled", "per_image", "per_image_true_pos_only")


@dataclass(frozen=True)
class PointResult:
    """IoU of one built point: for each aggregation float64 [K], NaN where undefined."""

    point: SweepPoint
    record: Record
    iou: dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class SettingResult:
    """A setting (a point without its trial): for each aggregation the intervals of the mean and of the K pathologies."""

    setting: SweepPoint
    trials: int
    planned: int
    mean: dict[str, Interval]
    pathologies: dict[str, list[Interval]]
    undefined: dict[str, int]


def point_results(study: Study, store: Store, pathologies: Sequence[str]) -> list[PointResult]:
    """The points that are built, in the study's order."""
    out = []
    for point, step in study.points:
        record = store.find(step)
        if record is not None:
            table = store.read_table(record, "counts.parquet").to_pandas()
            model, original = (_counts(table, resolution, pathologies) for resolution in ("model", "original"))
            iou = {
                "pooled": pooled_iou(model),
                "per_image": per_image_iou(original, true_pos_only=False),
                "per_image_true_pos_only": per_image_iou(original, true_pos_only=True),
            }
            absent = model[:, :, 2].sum(axis=0) == 0  # no true pixel in the test set: undefined for every point alike
            out.append(PointResult(point, record, {name: np.where(absent, np.nan, values) for name, values in iou.items()}))
    return out


def _counts(table: pd.DataFrame, resolution: str, pathologies: Sequence[str]) -> npt.NDArray[np.int64]:
    """int64 [N, K, 3] of one resolution."""
    rows = table[table["resolution"] == resolution]
    columns = ["intersection", "predicted", "truth"]
    each = [rows[rows["pathology"] == name].sort_values("cxr_id")[columns].to_numpy(dtype=np.int64) for name in pathologies]
    return np.stack(each, axis=1)


def setting_results(study: Study, results: Sequence[PointResult], level: float) -> list[SettingResult]:
    """Mean over trials with Student's t interval, for every setting of the study, built or not."""
    planned: dict[SweepPoint, int] = {}
    for point, _ in study.points:
        setting = replace(point, trial=-1)
        planned[setting] = planned.get(setting, 0) + 1
    return [_setting(s, n, [r for r in results if replace(r.point, trial=-1) == s], level) for s, n in planned.items()]


def mean_of_defined(iou: npt.NDArray[np.float64]) -> float:
    """The plain mean over the defined pathologies; NaN when there is none. For pooled and per_image these are the ones that
    the test set's truth has, whatever is predicted."""
    defined = ~np.isnan(iou)
    return float(iou[defined].mean()) if defined.any() else math.nan


def _setting(setting: SweepPoint, planned: int, own: Sequence[PointResult], level: float) -> SettingResult:
    means, each, undefined = {}, {}, {}
    for name in AGGREGATIONS:
        matrix = np.stack([r.iou[name] for r in own]) if own else np.zeros((0, 0))
        means[name] = t_interval([mean_of_defined(row) for row in matrix], level)
        each[name] = [t_interval([float(v) for v in column], level) for column in matrix.T]
        undefined[name] = int(np.isnan(matrix).any(axis=0).sum())
    return SettingResult(setting, len(own), planned, means, each, undefined)
