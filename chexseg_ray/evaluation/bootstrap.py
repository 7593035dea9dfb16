"""The patient bootstrap.

Both aggregations of IoU are a sum over patients divided by a sum over patients, so replicates are matrix products.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chexseg_ray.evaluation.iou import image_iou, nan_mean

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PatientSums:
    """An estimate, sum(numerator) / sum(denominator) over patients; a row holds all images of one patient.

    Args:
        numerator: float64 [P, K].
        denominator: float64 [P, K].
        truth: float64 [P, K], true pixels. Patients who have none together leave the estimate undefined, whatever is
            predicted.
    """

    numerator: Floats
    denominator: Floats
    truth: Floats

    def estimate(self) -> Floats:
        """The estimate on all patients, float64 [K]; NaN where the denominator or the number of true pixels is 0."""
        return _ratio(self.numerator.sum(axis=0), self.denominator.sum(axis=0), self.truth.sum(axis=0))

    def replicates(self, weights: npt.NDArray[np.float32]) -> Floats:
        """Compute the estimate on each replicate's patients, float64 [B, K]; NaN as in estimate().

        Args:
            weights: float32 [B, P], how often each replicate draws each patient (patient_weights).
        """
        return _ratio(weights @ self.numerator, weights @ self.denominator, weights @ self.truth)


def _ratio(numerator: Floats, denominator: Floats, truth: Floats) -> Floats:
    """Numerator over denominator, elementwise; NaN where the denominator or the truth is 0."""
    out: Floats = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=(denominator > 0) & (truth > 0))


def patient_rows(patient_ids: Sequence[str]) -> tuple[npt.NDArray[np.int64], int]:
    """Number the patients in the order of their ids.

    Args:
        patient_ids: each image's patient, N of them.

    Returns:
        Each image's patient number, int64 [N] in [0, P), and P.
    """
    names, rows = np.unique(np.asarray(patient_ids), return_inverse=True)
    return rows.astype(np.int64), len(names)


def pooled_sums(counts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], patients: int) -> PatientSums:
    """Sum intersection and union over each patient's images, for the pooled IoU.

    Args:
        counts: int64 [N, K, 3], pixels of intersection, prediction and truth.
        rows: each image's patient number, int64 [N].
        patients: P.
    """
    intersection, truth = counts[..., 0].astype(np.float64), counts[..., 2].astype(np.float64)
    union = counts[..., 1] + truth - intersection
    return PatientSums(
        _by_patient(intersection, rows, patients),
        _by_patient(union, rows, patients),
        _by_patient(truth, rows, patients),
    )


def per_image_sums(
    counts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], patients: int, true_pos_only: bool
) -> PatientSums:
    """Sum the IoU and the number of each patient's images, for the per-image IoU.

    Args:
        counts: as in pooled_sums.
        rows: as in pooled_sums.
        patients: P.
        true_pos_only: as in per_image_iou; images that it leaves out are not counted.
    """
    iou = image_iou(counts, true_pos_only)
    defined = ~np.isnan(iou)
    return PatientSums(
        _by_patient(np.where(defined, iou, 0.0), rows, patients),
        _by_patient(defined.astype(np.float64), rows, patients),
        _by_patient(counts[..., 2].astype(np.float64), rows, patients),
    )


def _by_patient(values: Floats, rows: npt.NDArray[np.int64], patients: int) -> Floats:
    """Sum values of images, float64 [N, ...], to values of patients, float64 [P, ...]."""
    out = np.zeros((patients, *values.shape[1:]))
    np.add.at(out, rows, values)
    return out


def positive_patients(
    counts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], patients: int
) -> npt.NDArray[np.int64]:
    """Count the patients who have a true pixel of each pathology.

    Args:
        counts: int64 [N, K, 3], pixels of intersection, prediction and truth.
        rows: each image's patient number, int64 [N].
        patients: P.

    Returns:
        int64 [K] in [0, P].
    """
    positive: npt.NDArray[np.int64] = (_by_patient(counts[..., 2].astype(np.float64), rows, patients) > 0).sum(axis=0)
    return positive


def patients_with_any(counts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], patients: int) -> int:
    """Count the patients who have a true pixel of any pathology, in [0, P].

    Args:
        counts: int64 [N, K, 3], pixels of intersection, prediction and truth.
        rows: each image's patient number, int64 [N].
        patients: P.
    """
    return int((_by_patient(counts[..., 2].astype(np.float64), rows, patients) > 0).any(axis=1).sum())


def patient_weights(patients: int, replicates: int, seed: int) -> npt.NDArray[np.float32]:
    """Draw the patients of every replicate, with replacement.

    One draw serves all settings, so that their differences are paired.

    Args:
        patients: P.
        replicates: B.
        seed: of NumPy's default generator.

    Returns:
        float32 [B, P], how often each replicate draws each patient; rows sum to P.
    """
    drawn = np.random.default_rng(seed).multinomial(patients, np.full(patients, 1 / patients), size=replicates)
    return drawn.astype(np.float32)


def mean_over_pathologies(values: Floats, defined: npt.NDArray[np.bool_]) -> Floats:
    """Average over the pathologies that the full set defines; a replicate leaves out those that are missing in it.

    Args:
        values: float64 [..., K].
        defined: bool [K], whether the full set defines the pathology.

    Returns:
        float64 [...]; NaN where all of them are missing in a replicate.
    """
    return nan_mean(np.moveaxis(values[..., defined], -1, 0))


def effective_patients(replicates: Floats, positive: npt.NDArray[np.int64], most: int) -> float:
    """Estimate how many patients a mean over pathologies rests on: its degrees of freedom + 1.

    Satterthwaite's (1946) formula combines the variances of the pathologies, each with the number of its positive
    patients - 1 as degrees of freedom. The result is small where a pathology that few patients show varies much.

    Args:
        replicates: float64 [B, K] of the defined pathologies.
        positive: patients that show each of them, int64 [K].
        most: patients that show any of them, the upper limit; the formula itself may exceed it, as it counts a patient
            once for each pathology.

    Returns:
        At most `most`; the largest of `positive` where nothing varies.
    """
    variances = np.zeros(replicates.shape[1])
    for k, values in enumerate(replicates.T):
        defined = values[~np.isnan(values)]
        if len(defined):
            variances[k] = np.var(defined)
    if not variances.sum() > 0:
        return float(positive.max(initial=0))
    return min(float(most), float(variances.sum() ** 2 / (variances**2 / np.maximum(positive - 1, 1)).sum()) + 1)
