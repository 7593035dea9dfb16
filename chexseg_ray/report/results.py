"""From records to numbers: the IoU of every point, and the mean of every setting with its three intervals.

Reads only the store; needs no Ray.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chexseg_ray.config.axes import SweepPoint
from chexseg_ray.evaluation.bootstrap import (
    PatientSums,
    effective_patients,
    mean_over_pathologies,
    patient_rows,
    patient_weights,
    patients_with_any,
    per_image_sums,
    pooled_sums,
    positive_patients,
)
from chexseg_ray.evaluation.intervals import Interval, combined_interval, percentile_interval, t_interval
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store
from chexseg_ray.study.graph import Study

AGGREGATIONS = ("pooled", "per_image", "per_image_true_pos_only")
FEW_PATIENTS = 20  # an interval from fewer positive patients is marked

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TestSet:
    """What all points are measured on.

    Args:
        patients: P, their number.
        images: N, their number.
        shown_by: for each aggregation int64 [K], the patients that show each pathology at its resolution.
        any_shown_by: for each aggregation the number of patients that show any pathology.
        weights: float32 [B, P], how often each replicate of the bootstrap draws each patient; the same for all points.
    """

    patients: int
    images: int
    shown_by: dict[str, npt.NDArray[np.int64]]
    any_shown_by: dict[str, int]
    weights: npt.NDArray[np.float32]

    @property
    def positive(self) -> npt.NDArray[np.int64]:
        """The patients that show each pathology at the resolution of the pooled IoU, int64 [K]."""
        return self.shown_by["pooled"]

    def defined(self, aggregation: str) -> npt.NDArray[np.bool_]:
        """Whether any patient shows a pathology, bool [K].

        Args:
            aggregation: one of AGGREGATIONS.
        """
        defined: npt.NDArray[np.bool_] = self.shown_by[aggregation] > 0
        return defined

    def carried_by(self, aggregation: str, replicates: Floats) -> float:
        """How many patients a mean over the defined pathologies rests on.

        Args:
            aggregation: one of AGGREGATIONS.
            replicates: float64 [B, K], of all pathologies.
        """
        defined = self.defined(aggregation)
        return effective_patients(
            replicates[:, defined], self.shown_by[aggregation][defined], self.any_shown_by[aggregation]
        )


@dataclass(frozen=True)
class PointResult:
    """A built point, or another reader.

    Args:
        point: of the sweep; for a reader any point.
        record: of the counts.
        iou: for each aggregation float64 [K] in [0, 1], NaN where undefined.
        sums: for each aggregation the sums over each patient's images.
    """

    point: SweepPoint
    record: Record
    iou: dict[str, Floats]
    sums: dict[str, PatientSums]


@dataclass(frozen=True)
class Estimate:
    """A mean over trials and its intervals.

    Args:
        trials: the interval over trials.
        patients: the interval over patients, given the trained networks.
        both: the interval over trials and patients.
        planned: number of trials, some of which may not be built.
        whole_image: whether a trial's threshold is 0, so that its mask is the whole image.
    """

    trials: Interval
    patients: Interval
    both: Interval
    planned: int
    whole_image: bool = False

    @property
    def mean(self) -> float:
        """The mean over the built trials; NaN where undefined."""
        return self.trials.mean

    @property
    def few(self) -> bool:
        """Whether patients show the pathology or carry the mean, but fewer than FEW_PATIENTS."""
        return 0 < self.patients.n < FEW_PATIENTS

    @property
    def shown(self) -> Interval:
        """The interval over trials and patients; over patients where only one trial was planned."""
        return self.patients if self.planned == 1 else self.both


@dataclass(frozen=True)
class SettingResult:
    """A setting (a point without its trial) and its estimates.

    Args:
        setting: has trial -1.
        points: the built trials.
        planned: number of trials.
        mean: for each aggregation the estimate of mean IoU.
        pathologies: for each aggregation the K estimates of IoU; none before a trial is built.
        undefined: for each aggregation the number of pathologies that some trial does not define.
        replicates: {trial: float32 [B]}, bootstrap replicates of pooled mean IoU.
    """

    setting: SweepPoint
    points: tuple[PointResult, ...]
    planned: int
    mean: dict[str, Estimate]
    pathologies: dict[str, list[Estimate]]
    undefined: dict[str, int]
    replicates: dict[int, npt.NDArray[np.float32]]

    @property
    def trials(self) -> int:
        """Number of built trials."""
        return len(self.points)

    def replicates_of(self, trials: Sequence[int]) -> Floats:
        """The bootstrap replicates of n trials' pooled mean IoU, float64 [B, n].

        Args:
            trials: built ones.
        """
        return np.stack([self.replicates[trial] for trial in trials], axis=1).astype(np.float64)

    def values(self, aggregation: str) -> dict[int, float]:
        """The mean IoU of each built trial, {trial: mean}.

        Args:
            aggregation: one of AGGREGATIONS.
        """
        return {result.point.trial: mean_of_defined(result.iou[aggregation]) for result in self.points}


def read_test_set(store: Store, record: Record, pathologies: Sequence[str], replicates: int) -> TestSet:
    """Read the test set from the counts of any point, and draw the bootstrap's patients.

    Args:
        store: contains the record.
        record: of counts.
        pathologies: K names.
        replicates: B, of the bootstrap.
    """
    counts = read_counts(store.read_table(record, "counts.parquet"), pathologies)
    rows, patients = patient_rows(counts.patients)
    pixels = {"pooled": counts.model, "per_image": counts.original, "per_image_true_pos_only": counts.original}
    shown_by = {name: positive_patients(values, rows, patients) for name, values in pixels.items()}
    any_shown_by = {name: patients_with_any(values, rows, patients) for name, values in pixels.items()}
    return TestSet(patients, len(rows), shown_by, any_shown_by, patient_weights(patients, replicates, 0))


def point_results(
    study: Study, store: Store, records: Mapping[str, Record], pathologies: Sequence[str]
) -> list[PointResult]:
    """Measure the points that are built, in the study's order.

    Args:
        study: its graph.
        store: contains the records.
        records: of what is built, by address.
        pathologies: K names.
    """
    built = [(point, records[step.address]) for point, step in study.points if step.address in records]
    return list(store.side_by_side(lambda pair: measured(store, *pair, pathologies), built))


def measured(store: Store, point: SweepPoint, record: Record, pathologies: Sequence[str]) -> PointResult:
    """Measure one record of counts.

    Args:
        store: contains the record.
        point: that it belongs to.
        record: of counts.
        pathologies: K names.
    """
    counts = read_counts(store.read_table(record, "counts.parquet"), pathologies)
    rows, patients = patient_rows(counts.patients)
    sums = {
        "pooled": pooled_sums(counts.model, rows, patients),
        "per_image": per_image_sums(counts.original, rows, patients, true_pos_only=False),
        "per_image_true_pos_only": per_image_sums(counts.original, rows, patients, true_pos_only=True),
    }
    return PointResult(point, record, {name: patient_sums.estimate() for name, patient_sums in sums.items()}, sums)


@dataclass(frozen=True)
class Counts:
    """Pixels of intersection, prediction and truth, for images in the order of their ids.

    Args:
        patients: the patient of each image.
        model: int64 [N, K, 3] at the network's resolution.
        original: int64 [N, K, 3] at the images' resolution.
    """

    patients: list[str]
    model: npt.NDArray[np.int64]
    original: npt.NDArray[np.int64]


def read_counts(table: pa.Table, pathologies: Sequence[str]) -> Counts:
    """Read a table of counts.

    Args:
        table: as stages/counts.py writes it.
        pathologies: K names; their order is that of the result, and rows of others are left out.
    """
    column_of = {name: i for i, name in enumerate(pathologies)}
    names, resolutions = table.column("pathology").to_pylist(), np.array(table.column("resolution").to_pylist())
    values = np.stack([table.column(name).to_numpy() for name in ("intersection", "predicted", "truth")], axis=1)
    cxr_ids = table.column("cxr_id").to_pylist()
    patient_of = dict(zip(cxr_ids, table.column("patient_id").to_pylist(), strict=True))
    ids = {cxr_id: i for i, cxr_id in enumerate(sorted(patient_of))}
    rows = np.array([ids[cxr_id] for cxr_id in cxr_ids])
    columns = np.array([column_of.get(name, -1) for name in names])
    pixels = {}
    for resolution in ("model", "original"):
        used = (resolutions == resolution) & (columns >= 0)
        counts = np.zeros((len(ids), len(pathologies), 3), dtype=np.int64)
        counts[rows[used], columns[used]] = values[used]
        pixels[resolution] = counts
    return Counts([patient_of[cxr_id] for cxr_id in ids], pixels["model"], pixels["original"])


def setting_results(
    study: Study, results: Sequence[PointResult], test: TestSet | None, level: float
) -> list[SettingResult]:
    """Estimate every setting of the study, built or not.

    Args:
        study: its graph.
        results: the built points.
        test: the test set; None where nothing is built.
        level: coverage of the intervals, in (0, 1).
    """
    planned: dict[SweepPoint, int] = {}
    for point, _ in study.points:
        setting = point.setting
        planned[setting] = planned.get(setting, 0) + 1
    built: dict[SweepPoint, list[PointResult]] = {setting: [] for setting in planned}
    for result in results:
        built[result.point.setting].append(result)
    return [_setting_result(setting, n, tuple(built[setting]), test, level) for setting, n in planned.items()]


def mean_of_defined(iou: Floats) -> float:
    """The plain mean over the defined pathologies; NaN where there is none.

    For pooled and per_image these are the pathologies that the test set's truth has, whatever is predicted.

    Args:
        iou: float64 [K], NaN where undefined.
    """
    defined = ~np.isnan(iou)
    return float(iou[defined].mean()) if defined.any() else math.nan


def _setting_result(
    setting: SweepPoint, planned: int, points: tuple[PointResult, ...], test: TestSet | None, level: float
) -> SettingResult:
    """The result of one setting with its built points, in their order; see setting_results."""
    means: dict[str, Estimate] = {}
    each: dict[str, list[Estimate]] = {}
    undefined: dict[str, int] = {}
    replicates: dict[int, npt.NDArray[np.float32]] = {}
    for name in AGGREGATIONS:
        matrix = np.stack([result.iou[name] for result in points]) if points else np.zeros((0, 0))  # [trials, K]
        undefined[name] = int(np.isnan(matrix).any(axis=0).sum())
        if test is None or not points:
            means[name], each[name] = _not_built(planned), []
            continue
        drawn = np.stack([result.sums[name].replicates(test.weights) for result in points], axis=2)  # [B, K, trials]
        by_trial = mean_over_pathologies(np.moveaxis(drawn, 1, 2), test.defined(name))
        over_trials = [over_defined(drawn[:, k], matrix[:, k]) for k in range(matrix.shape[1])]
        carried = test.carried_by(name, np.stack(over_trials, axis=1))
        means[name] = estimate([mean_of_defined(row) for row in matrix], by_trial, carried, level, planned)
        each[name] = [
            estimate(matrix[:, k].tolist(), drawn[:, k], int(n), level, planned)
            for k, n in enumerate(test.shown_by[name])
        ]
        if name == "pooled":
            rows = by_trial.T.astype(np.float32)
            replicates = {result.point.trial: row for result, row in zip(points, rows, strict=True)}
    return SettingResult(setting, points, planned, means, each, undefined, replicates)


def over_defined(replicates: Floats, values: npt.ArrayLike) -> Floats:
    """The mean of each replicate over the trials that define a value.

    Args:
        replicates: float64 [B, n].
        values: [n], one per trial; NaN where the trial does not define it.

    Returns:
        float64 [B]; NaN where no trial defines the value.
    """
    defined = ~np.isnan(np.asarray(values, dtype=np.float64))
    mean: Floats = replicates[:, defined].mean(axis=1) if defined.any() else np.full(len(replicates), np.nan)
    return mean


def estimate(values: Sequence[float], replicates: Floats, patients: float, level: float, planned: int) -> Estimate:
    """Estimate a mean IoU over trials with its three intervals, clipped to [0, 1].

    Args:
        values: one per trial; trials with NaN are left out.
        replicates: float64 [B, n], each trial's value on resampled patients.
        patients: how many the mean rests on.
        level: coverage, in (0, 1).
        planned: number of trials, built or not.
    """
    trials = t_interval(values, level)
    both = combined_interval(values, replicates, patients, level).interval
    given = percentile_interval(trials.mean, over_defined(replicates, values), patients, level)
    return Estimate(_clip(trials), given, _clip(both), planned)


def _clip(interval: Interval) -> Interval:
    """The interval within [0, 1]; one that is undefined stays unchanged."""
    if interval.reason:
        return interval
    return replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high))


def _not_built(planned: int) -> Estimate:
    blank = Interval(math.nan, math.nan, math.nan, 0, "not built")
    return Estimate(blank, blank, blank, planned)
