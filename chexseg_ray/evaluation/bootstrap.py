"""The patient bootstrap: both aggregations of IoU are sums over patients divided by sums over patients, so replicates are matrix products."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chexseg_ray.evaluation.iou import image_iou, nan_mean

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PatientSums:
    """An estimate as sum(numerator) / sum(denominator) over patients: float64 [P, K] each; all images of a patient lie in one row.

    `truth` is each patient's true pixels: a set of patients without any does not define a pathology, whatever is predicted."""

    numerator: Floats
    denominator: Floats
    truth: Floats

    def estimate(self) -> Floats:
        """float64 [K]; NaN where the denominator is 0 or no patient shows the pathology."""
        return _ratio(self.numerator.sum(axis=0), self.denominator.sum(axis=0), self.truth.sum(axis=0))

    def replicates(self, weights: npt.NDArray[np.float32]) -> Floats:
        """float64 [B, K] on resampled patients, undefined by the same rule.

        Args:
            weights: [B, P], how often each replicate has each patient.
        """
        return _ratio(weights @ self.numerator, weights @ self.denominator, weights @ self.truth)


def _ratio(numerator: Floats, denominator: Floats, truth: Floats) -> Floats:
    out: Floats = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=(denominator > 0) & (truth > 0))


def patient_rows(patient_ids: Sequence[str]) -> tuple[npt.NDArray[np.int64], int]:
    """Each image's patient as a number int64 [N], in the order of their ids, and how many patients there are."""
    names, rows = np.unique(np.asarray(patient_ids), return_inverse=True)
    return rows.astype(np.int64), len(names)


def pooled_sums(counts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], patients: int) -> PatientSums:
    """Pooled IoU by patient: intersection over union.

    Args:
        counts: int64 [N, K, 3] of intersection, predicted, truth.
        rows: each image's patient, int64 [N].
        patients: P.
    """
    intersection, truth = counts[..., 0].astype(np.float64), counts[..., 2].astype(np.float64)
    union = counts[..., 1] + truth - intersection
    return PatientSums(*(_by_patient(values, rows, patients) for values in (intersection, union, truth)))


def per_image_sums(counts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], patients: int, true_pos_only: bool) -> PatientSums:
    """Per-image IoU by patient: the sum of its images' IoU over their number; arguments as pooled_sums and per_image_iou."""
    each = image_iou(counts, true_pos_only)
    defined = ~np.isnan(each)
    values = np.where(defined, each, 0.0), defined.astype(np.float64), counts[..., 2].astype(np.float64)
    return PatientSums(*(_by_patient(own, rows, patients) for own in values))


def _by_patient(values: Floats, rows: npt.NDArray[np.int64], patients: int) -> Floats:
    out = np.zeros((patients, *values.shape[1:]))
    np.add.at(out, rows, values)
    return out


def positive_patients(counts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], patients: int) -> npt.NDArray[np.int64]:
    """int64 [K]: patients with a true pixel of a pathology; arguments as pooled_sums."""
    positive: npt.NDArray[np.int64] = (_by_patient(counts[..., 2].astype(np.float64), rows, patients) > 0).sum(axis=0)
    return positive


def patients_with_any(counts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], patients: int) -> int:
    """How many patients have a true pixel of any pathology; arguments as pooled_sums."""
    return int((_by_patient(counts[..., 2].astype(np.float64), rows, patients) > 0).any(axis=1).sum())


def patient_weights(patients: int, replicates: int, seed: int) -> npt.NDArray[np.float32]:
    """float32 [B, P]: how often each of B replicates draws each of P patients, with replacement. One draw serves all settings, so that
    differences between them are paired."""
    drawn = np.random.default_rng(seed).multinomial(patients, np.full(patients, 1 / patients), size=replicates)
    return drawn.astype(np.float32)


def mean_over_pathologies(values: Floats, defined: npt.NDArray[np.bool_]) -> Floats:
    """The mean over the pathologies that the full set defines: float64 [...] of [..., K]; one that a replicate lacks is left out of it."""
    return nan_mean(np.moveaxis(values[..., defined], -1, 0))


def effective_patients(replicates: Floats, positive: npt.NDArray[np.int64], most: int) -> float:
    """How many patients a mean over pathologies rests on: its degrees of freedom + 1 by Satterthwaite's formula over the pathologies' variances,
    each with those of its own positive patients. A pathology that few patients show, and that varies much, makes them few.

    Args:
        replicates: float64 [B, K] of the defined pathologies.
        positive: patients that show each, int64 [K].
        most: patients that show any of them, which the formula may exceed where the same ones show several.
    """
    variances = np.array([np.var(own[~np.isnan(own)]) if (~np.isnan(own)).any() else 0.0 for own in replicates.T])
    if not variances.sum() > 0:
        return float(positive.max(initial=0))
    return min(float(most), float(variances.sum() ** 2 / (variances**2 / np.maximum(positive - 1, 1)).sum()) + 1)
