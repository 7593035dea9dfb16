"""From records to numbers: IoU of every point, and mean with interval over its trials. Reads the store alone, no Ray."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

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


def point_results(study: Study, store: Store, records: Mapping[str, Record], pathologies: Sequence[str]) -> list[PointResult]:
    """The points that are built, in the study's order; `records` by address."""
    found = [(point, records[step.address]) for point, step in study.points if step.address in records]

    def result(each: tuple[SweepPoint, Record]) -> PointResult:
        counts = read_counts(store.read_table(each[1], "counts.parquet"), pathologies)
        model, original = counts["model"], counts["original"]
        iou = {
            "pooled": pooled_iou(model),
            "per_image": per_image_iou(original, true_pos_only=False),
            "per_image_true_pos_only": per_image_iou(original, true_pos_only=True),
        }
        absent = model[:, :, 2].sum(axis=0) == 0  # no true pixel in the test set: undefined for every point alike
        return PointResult(*each, {name: np.where(absent, np.nan, values) for name, values in iou.items()})

    return list(store.side_by_side(result, found))


def read_counts(table: pa.Table, pathologies: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
    """{resolution: int64 [N, K, 3]} of a table of counts: images in id order, pathologies in the given one; intersection, predicted, truth."""
    place = {name: i for i, name in enumerate(pathologies)}
    names, resolutions = table.column("pathology").to_pylist(), table.column("resolution").to_pylist()
    values = np.stack([table.column(name).to_numpy() for name in ("intersection", "predicted", "truth")], axis=1)
    ids = {cxr_id: i for i, cxr_id in enumerate(sorted(set(table.column("cxr_id").to_pylist())))}
    rows = np.array([ids[cxr_id] for cxr_id in table.column("cxr_id").to_pylist()])
    columns = np.array([place.get(name, -1) for name in names])
    out = {}
    for resolution in sorted(set(resolutions)):
        own = (np.array(resolutions) == resolution) & (columns >= 0)
        counts = np.zeros((len(ids), len(pathologies), 3), dtype=np.int64)
        counts[rows[own], columns[own]] = values[own]
        out[resolution] = counts
    return out


def setting_results(study: Study, results: Sequence[PointResult], level: float) -> list[SettingResult]:
    """Mean over trials with Student's t interval, for every setting of the study, built or not."""
    planned: dict[SweepPoint, int] = {}
    for point, _ in study.points:
        setting = replace(point, trial=-1)
        planned[setting] = planned.get(setting, 0) + 1
    own: dict[SweepPoint, list[PointResult]] = {setting: [] for setting in planned}
    for result in results:
        own[replace(result.point, trial=-1)].append(result)
    return [_setting(s, n, own[s], level) for s, n in planned.items()]


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
