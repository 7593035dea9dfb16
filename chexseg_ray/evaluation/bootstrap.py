"""The patient bootstrap: both aggregations of IoU are sums over patients divided by sums over patients, so replicates are two matrix products."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chexseg_ray.evaluation.iou import image_iou, nan_mean

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PatientSums:
    """An estimate as sum(numerator) / sum(denominator) over patients: float64 [P, K] each; all images of a patient lie in one row."""

    numerator: Floats
    denominator: Floats

    def estimate(self) -> Floats:
        """float64 [K]; NaN where the denominator is 0."""
        return _ratio(self.numerator.sum(axis=0), self.denominator.sum(axis=0))

    def replicates(self, weights: npt.NDArray[np.float32]) -> Floats:
        """float64 [B, K] on resampled patients; NaN where a replicate's denominator is 0.

        Args:
            weights: [B, P], how often each replicate has each patient.
        """
        return _ratio(weights @ self.numerator, weights @ self.denominator)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    out: Floats = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


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
    intersection = counts[..., 0].astype(np.float64)
    return PatientSums(_by_patient(intersection, rows, patients), _by_patient(counts[..., 1] + counts[..., 2] - intersection, rows, patients))


def per_image_sums(counts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], patients: int, true_pos_only: bool) -> PatientSums:
    """Per-image IoU by patient: the sum of its images' IoU over their number; arguments as pooled_sums and per_image_iou."""
    each = image_iou(counts, true_pos_only)
    defined = ~np.isnan(each)
    return PatientSums(_by_patient(np.where(defined, each, 0.0), rows, patients), _by_patient(defined.astype(np.float64), rows, patients))


def _by_patient(values: Floats, rows: npt.NDArray[np.int64], patients: int) -> Floats:
    out = np.zeros((patients, *values.shape[1:]))
    np.add.at(out, rows, values)
    return out


def positive_patients(counts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], patients: int) -> npt.NDArray[np.int64]:
    """int64 [K]: patients with a true pixel of a pathology; arguments as pooled_sums."""
    positive: npt.NDArray[np.int64] = (_by_patient(counts[..., 2].astype(np.float64), rows, patients) > 0).sum(axis=0)
    return positive


def patient_weights(patients: int, replicates: int, seed: int) -> npt.NDArray[np.float32]:
    """float32 [B, P]: how often each of B replicates draws each of P patients, with replacement. One draw serves all settings, so that
    differences between them are paired."""
    drawn = np.random.default_rng(seed).multinomial(patients, np.full(patients, 1 / patients), size=replicates)
    return drawn.astype(np.float32)


def mean_over_pathologies(values: Floats, defined: npt.NDArray[np.bool_]) -> Floats:
    """The mean over the pathologies that the full set defines: float64 [...] of [..., K]; one that a replicate lacks is left out of it."""
    return nan_mean(np.moveaxis(values[..., defined], -1, 0))
