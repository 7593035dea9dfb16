"""From records to numbers: IoU of every point, and of every setting the mean with its three intervals. Reads the store alone, no Ray."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from chexseg_ray.artifacts import Record, Store
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
from chexseg_ray.pipeline import Study, SweepPoint

AGGREGATIONS = ("pooled", "per_image", "per_image_true_pos_only")
FEW_PATIENTS = 20  # positive ones, below which an interval is marked

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TestSet:
    """What all points are measured on: images, patients, at each aggregation's resolution the patients that show each pathology int64 [K] and any
    of them, and the bootstrap's draws float32 [B, P], which serve every point."""

    patients: int
    images: int
    shown_by: dict[str, npt.NDArray[np.int64]]
    any_shown_by: dict[str, int]
    weights: npt.NDArray[np.float32]

    @property
    def positive(self) -> npt.NDArray[np.int64]:
        """Patients that show each pathology at the resolution of the pooled IoU."""
        return self.shown_by["pooled"]

    def defined(self, aggregation: str) -> npt.NDArray[np.bool_]:
        """bool [K], whether any patient shows a pathology."""
        defined: npt.NDArray[np.bool_] = self.shown_by[aggregation] > 0
        return defined

    def carried_by(self, aggregation: str, replicates: Floats) -> float:
        """How many patients a mean over the defined pathologies rests on; `replicates` float64 [B, K] are of all K."""
        defined = self.defined(aggregation)
        return effective_patients(replicates[:, defined], self.shown_by[aggregation][defined], self.any_shown_by[aggregation])


@dataclass(frozen=True)
class PointResult:
    """One built point, or another reader: for each aggregation IoU float64 [K], NaN where undefined, and its sums by patient."""

    point: SweepPoint
    record: Record
    iou: dict[str, Floats]
    sums: dict[str, PatientSums]


@dataclass(frozen=True)
class Estimate:
    """A mean over trials and its intervals: over trials, over patients (given these networks), over both. `planned` trials, of which some may
    not be built."""

    trials: Interval
    patients: Interval
    both: Interval
    planned: int

    @property
    def mean(self) -> float:
        return self.trials.mean

    @property
    def few(self) -> bool:
        """Whether too few patients show the pathology, or carry the mean, for any interval over patients to be trusted."""
        return 0 < self.patients.n < FEW_PATIENTS

    @property
    def shown(self) -> Interval:
        """Over trials and patients; over patients where one trial alone was planned."""
        return self.patients if self.planned == 1 else self.both


@dataclass(frozen=True)
class SettingResult:
    """A setting (a point without its trial): for each aggregation the estimates of the mean and of the K pathologies; of pooled mean IoU each
    trial's replicates float32 [B]."""

    setting: SweepPoint
    points: tuple[PointResult, ...]
    planned: int
    mean: dict[str, Estimate]
    pathologies: dict[str, list[Estimate]]
    undefined: dict[str, int]
    replicates: dict[int, npt.NDArray[np.float32]]

    @property
    def trials(self) -> int:
        return len(self.points)

    def replicates_of(self, trials: Sequence[int]) -> Floats:
        """Of some trials' pooled mean IoU: float64 [B, n]."""
        return np.stack([self.replicates[trial] for trial in trials], axis=1).astype(np.float64)

    def values(self, aggregation: str) -> dict[int, float]:
        """{trial: mean IoU}."""
        return {own.point.trial: mean_of_defined(own.iou[aggregation]) for own in self.points}


def read_test_set(store: Store, record: Record, pathologies: Sequence[str], replicates: int) -> TestSet:
    """The test set as the counts of any point have it; the bootstrap draws its patients `replicates` times."""
    counts = read_counts(store.read_table(record, "counts.parquet"), pathologies)
    rows, patients = patient_rows(counts.patients)
    own = {"pooled": counts.model, "per_image": counts.original, "per_image_true_pos_only": counts.original}
    shown_by = {name: positive_patients(each, rows, patients) for name, each in own.items()}
    any_shown_by = {name: patients_with_any(each, rows, patients) for name, each in own.items()}
    return TestSet(patients, len(rows), shown_by, any_shown_by, patient_weights(patients, replicates, 0))


def point_results(study: Study, store: Store, records: Mapping[str, Record], pathologies: Sequence[str]) -> list[PointResult]:
    """The points that are built, in the study's order; `records` by address."""
    found = [(point, records[step.address]) for point, step in study.points if step.address in records]
    return list(store.side_by_side(lambda each: measured(store, *each, pathologies), found))


def measured(store: Store, point: SweepPoint, record: Record, pathologies: Sequence[str]) -> PointResult:
    """The result of one record of counts."""
    counts = read_counts(store.read_table(record, "counts.parquet"), pathologies)
    rows, patients = patient_rows(counts.patients)
    sums = {
        "pooled": pooled_sums(counts.model, rows, patients),
        "per_image": per_image_sums(counts.original, rows, patients, true_pos_only=False),
        "per_image_true_pos_only": per_image_sums(counts.original, rows, patients, true_pos_only=True),
    }
    return PointResult(point, record, {name: own.estimate() for name, own in sums.items()}, sums)


@dataclass(frozen=True)
class Counts:
    """Pixels int64 [N, K, 3] of intersection, predicted and truth at both resolutions; images in id order, with the patient of each."""

    patients: list[str]
    model: npt.NDArray[np.int64]
    original: npt.NDArray[np.int64]


def read_counts(table: pa.Table, pathologies: Sequence[str]) -> Counts:
    """A table of counts, its pathologies in the given order."""
    place = {name: i for i, name in enumerate(pathologies)}
    names, resolutions = table.column("pathology").to_pylist(), np.array(table.column("resolution").to_pylist())
    values = np.stack([table.column(name).to_numpy() for name in ("intersection", "predicted", "truth")], axis=1)
    cxr_ids = table.column("cxr_id").to_pylist()
    patient_of = dict(zip(cxr_ids, table.column("patient_id").to_pylist(), strict=True))
    ids = {cxr_id: i for i, cxr_id in enumerate(sorted(patient_of))}
    rows = np.array([ids[cxr_id] for cxr_id in cxr_ids])
    columns = np.array([place.get(name, -1) for name in names])
    out = {}
    for resolution in ("model", "original"):
        own = (resolutions == resolution) & (columns >= 0)
        counts = np.zeros((len(ids), len(pathologies), 3), dtype=np.int64)
        counts[rows[own], columns[own]] = values[own]
        out[resolution] = counts
    return Counts([patient_of[cxr_id] for cxr_id in ids], out["model"], out["original"])


def setting_results(study: Study, results: Sequence[PointResult], test: TestSet | None, level: float) -> list[SettingResult]:
    """Mean over trials with its intervals, for every setting of the study, built or not; `test` is None when nothing is built."""
    planned: dict[SweepPoint, int] = {}
    for point, _ in study.points:
        setting = replace(point, trial=-1)
        planned[setting] = planned.get(setting, 0) + 1
    own: dict[SweepPoint, list[PointResult]] = {setting: [] for setting in planned}
    for result in results:
        own[replace(result.point, trial=-1)].append(result)
    return [_setting(setting, number, tuple(own[setting]), test, level) for setting, number in planned.items()]


def mean_of_defined(iou: Floats) -> float:
    """The plain mean over the defined pathologies; NaN when there is none. For pooled and per_image these are the ones that
    the test set's truth has, whatever is predicted."""
    defined = ~np.isnan(iou)
    return float(iou[defined].mean()) if defined.any() else math.nan


def _setting(setting: SweepPoint, planned: int, points: tuple[PointResult, ...], test: TestSet | None, level: float) -> SettingResult:
    means: dict[str, Estimate] = {}
    each: dict[str, list[Estimate]] = {}
    undefined: dict[str, int] = {}
    replicates: dict[int, npt.NDArray[np.float32]] = {}
    for name in AGGREGATIONS:
        matrix = np.stack([own.iou[name] for own in points]) if points else np.zeros((0, 0))
        undefined[name] = int(np.isnan(matrix).any(axis=0).sum())
        if test is None or not points:
            means[name], each[name] = _nothing(planned), []
            continue
        drawn = np.stack([own.sums[name].replicates(test.weights) for own in points], axis=2)  # [B, K, trials]
        by_trial = mean_over_pathologies(np.moveaxis(drawn, 1, 2), test.defined(name))
        carried = test.carried_by(name, np.stack([over_defined(drawn[:, k], matrix[:, k]) for k in range(matrix.shape[1])], axis=1))
        means[name] = estimate([mean_of_defined(row) for row in matrix], by_trial, carried, level, planned)
        each[name] = [estimate(matrix[:, k].tolist(), drawn[:, k], int(n), level, planned) for k, n in enumerate(test.shown_by[name])]
        if name == "pooled":
            replicates = {own.point.trial: row for own, row in zip(points, by_trial.T.astype(np.float32), strict=True)}
    return SettingResult(setting, points, planned, means, each, undefined, replicates)


def over_defined(replicates: Floats, values: npt.ArrayLike) -> Floats:
    """The mean over the trials that define a value: float64 [B] of [B, n]; NaN where none does."""
    defined = ~np.isnan(np.asarray(values, dtype=np.float64))
    mean: Floats = replicates[:, defined].mean(axis=1) if defined.any() else np.full(len(replicates), np.nan)
    return mean


def estimate(values: Sequence[float], replicates: Floats, patients: float, level: float, planned: int) -> Estimate:
    """A mean IoU over trials with its three intervals, cut to [0, 1].

    Args:
        values: one a trial; NaN trials are left out.
        replicates: float64 [B, n] of each trial.
        patients: how many it rests on.
        level: coverage in (0, 1).
        planned: trials.
    """
    trials = t_interval(values, level)
    both = combined_interval(values, replicates, patients, level).interval
    given = percentile_interval(trials.mean, over_defined(replicates, values), patients, level)
    return Estimate(_cut(trials), given, _cut(both), planned)


def _cut(interval: Interval) -> Interval:
    return replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high)) if not interval.reason else interval


def _nothing(planned: int) -> Estimate:
    blank = Interval(math.nan, math.nan, math.nan, 0, "not built")
    return Estimate(blank, blank, blank, planned)
