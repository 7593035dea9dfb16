"""Intervals, contrasts and power against scipy, brute force, and simulations where the truth is known."""

import importlib.util
import itertools
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from chexseg_ray.evaluation.bootstrap import (
    effective_patients,
    mean_over_pathologies,
    patient_rows,
    patient_weights,
    per_image_sums,
    pooled_sums,
    positive_patients,
)
from chexseg_ray.evaluation.contrasts import holm, paired_difference, patients_needed, power, trials_needed
from chexseg_ray.evaluation.intervals import (
    cochran_cox_t,
    combined_interval,
    hierarchical_interval,
    p_value,
    percentile_interval,
    satterthwaite_t,
    shared_variance,
    t_interval,
)
from chexseg_ray.evaluation.iou import per_image_iou, pooled_iou


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["coverage_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def counts_of(rng: np.random.Generator, images: int = 30) -> tuple[np.ndarray, list[str]]:
    intersection = rng.integers(0, 50, size=(images, 4)) * (rng.random((images, 4)) < 0.6)
    predicted = intersection + rng.integers(0, 50, size=(images, 4)) * (rng.random((images, 4)) < 0.6)
    truth = intersection + rng.integers(0, 50, size=(images, 4)) * (rng.random((images, 4)) < 0.6)
    counts = np.stack([intersection, predicted, truth], axis=-1)
    counts[:, 3] = 0
    counts[4:, 2, 0], counts[4:, 2, 2] = 0, 0  # shown by four patients alone
    return counts, [f"patient{i % 11}" for i in range(images)]


def test_sums_by_patient_give_both_aggregations(rng: np.random.Generator) -> None:
    counts, patients = counts_of(rng)
    rows, number = patient_rows(patients)
    assert number == 11
    np.testing.assert_allclose(pooled_sums(counts, rows, number).estimate(), pooled_iou(counts))
    for only in (True, False):
        np.testing.assert_allclose(per_image_sums(counts, rows, number, only).estimate(), per_image_iou(counts, only))
    expected = [len({p for p, t in zip(patients, counts[:, k, 2], strict=True) if t > 0}) for k in range(4)]
    assert positive_patients(counts, rows, number).tolist() == expected


def test_a_replicate_is_the_estimate_on_whole_patients_drawn_again(rng: np.random.Generator) -> None:
    counts, patients = counts_of(rng)
    rows, number = patient_rows(patients)
    weights = patient_weights(number, 20, 3)
    assert (weights.sum(axis=1) == number).all()
    for sums, estimate in (
        (pooled_sums(counts, rows, number), pooled_iou),
        (per_image_sums(counts, rows, number, False), lambda c: per_image_iou(c, False)),
        (per_image_sums(counts, rows, number, True), lambda c: per_image_iou(c, True)),
    ):
        ours = sums.replicates(weights)
        for b in range(20):
            images = [i for i in range(len(rows)) for _ in range(int(weights[b, rows[i]]))]
            shown = counts[images][..., 2].sum(axis=0) > 0
            np.testing.assert_allclose(ours[b], np.where(shown, estimate(counts[images]), np.nan), rtol=1e-6)
    assert np.isnan(ours[:, 3]).all()


def test_the_patient_bootstrap_has_scipys_spread(rng: np.random.Generator) -> None:
    number = 80
    top, bottom = rng.gamma(2.0, size=(number, 1)), rng.gamma(5.0, size=(number, 1))
    from chexseg_ray.evaluation.bootstrap import PatientSums

    ours = PatientSums(top, bottom, np.ones_like(top)).replicates(patient_weights(number, 20_000, 0))[:, 0]
    theirs = stats.bootstrap(
        (top[:, 0], bottom[:, 0]),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    assert ours.std(ddof=1) == pytest.approx(theirs.standard_error, rel=0.03)
    interval = percentile_interval(float(top.sum() / bottom.sum()), ours, number, 0.95)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert 1.0 < (interval.high - interval.low) / width < 1.08, "a little wider than the plain percentile interval"


def shared(replicates: np.ndarray, trials: int) -> np.ndarray:
    """Replicates of trials that err on the same patients."""
    return np.repeat(replicates[:, None], trials, axis=1)


def test_the_shared_variance_is_the_covariance_between_trials(rng: np.random.Generator) -> None:
    replicates = rng.normal(size=(5000, 1)) * 0.5 + rng.normal(size=(5000, 4)) * 2
    replicates[7, 2] = np.nan
    together, separate = shared_variance(replicates)
    expected = np.cov(replicates[~np.isnan(replicates).any(axis=1)].T)
    assert together == pytest.approx(expected[np.triu_indices(4, 1)].mean())
    assert together + separate == pytest.approx(expected.diagonal().mean())
    assert shared_variance(np.array([[0.1, 0.4], [0.2, 0.3], [0.3, 0.1]]))[0] == 0, "not negative"
    assert np.isnan(shared_variance(replicates[:, :1])).all()


@pytest.mark.parametrize(("trial_sd", "own_sd", "least"), [(0.0, 0.3, 0.0), (0.06, 0.3, 2.5), (0.05, 0.05, 2.5)])
def test_a_paired_test_of_no_difference_finds_about_what_it_may(
    trial_sd: float, own_sd: float, least: float, rng: np.random.Generator
) -> None:
    """The variance between trials contains what each trial does to its patients, so the test does not count it again.

    Where nothing else varies, trials that happen to agree find a difference less often than the nominal level, because
    they must not claim more than these patients show.
    """
    n, patients, found = 3, 60, 0
    for _ in range(400):
        each = (
            rng.normal(scale=trial_sd, size=(n, 1))
            + rng.normal(scale=0.05, size=patients)
            + rng.normal(scale=own_sd, size=(n, patients))
        )
        weights = rng.multinomial(patients, np.full(patients, 1 / patients), size=300) / patients
        values = each.mean(axis=1)
        replicates, nothing = weights @ each.T, np.zeros((300, n))
        found += paired_difference(values.tolist(), [0.0] * n, replicates, nothing, patients, 0.95).p_value < 0.05
    assert least <= found / 4 <= 8, "per cent of 400, nominal 5"


def test_trials_that_happen_to_agree_do_not_claim_more_than_patients_alone_show(rng: np.random.Generator) -> None:
    replicates = 0.03 + rng.normal(scale=0.02, size=(4000, 2))
    both = combined_interval([0.0299, 0.0301], replicates, 100, 0.95).interval
    alone = percentile_interval(0.03, replicates.mean(axis=1), 100, 0.95)
    assert both.high - both.low == pytest.approx(alone.high - alone.low, rel=0.06)
    difference = paired_difference([0.0299, 0.0301], [0.0] * 2, replicates, np.zeros((4000, 2)), 100, 0.95)
    assert difference.p_value == pytest.approx(2 * stats.t.sf(0.03 / replicates.mean(axis=1).std(ddof=1), 99), rel=0.15)


def test_more_patients_take_away_what_a_trial_does_on_its_own_patients(rng: np.random.Generator) -> None:
    replicates = 0.02 + rng.normal(scale=0.02, size=(4000, 3))  # nothing shared
    values = [0.0, 0.02, 0.04]
    both = paired_difference(values, [0.0] * 3, replicates, np.zeros((4000, 3)), 100, 0.95).both
    assert both.interaction == pytest.approx(0.02**2, rel=0.1)
    more = patients_needed(both, 100, 0.95)
    assert more is not None, (
        "the trials vary by 0.02, as they would on these patients without any variance of their own"
    )
    assert 200 < more < 5000


def test_both_variances_together_are_welchs_test(rng: np.random.Generator) -> None:
    """A difference of two means has the same form: v1 + v2 with n1 - 1 and n2 - 1 degrees of freedom."""
    a, b = rng.normal(0.4, 1.0, size=4), rng.normal(0.0, 2.0, size=9)
    welch = stats.ttest_ind(a, b, equal_var=False)
    scale = math.sqrt(b.var(ddof=1) / len(b))
    replicates = rng.normal(size=500)
    replicates = (replicates - replicates.mean()) / replicates.std(ddof=1) * scale
    ours = combined_interval((a - b.mean()).tolist(), shared(replicates, len(a)), len(b), 0.95)
    expected = welch.confidence_interval(0.95)
    assert (ours.interval.low, ours.interval.high) == pytest.approx((expected.low, expected.high))
    assert p_value(ours, satterthwaite_t) == pytest.approx(welch.pvalue, rel=1e-6)


def test_cochran_and_coxs_quantile_is_between_those_of_its_parts() -> None:
    for ratio in (0.0, 0.1, 1.0, 10.0):
        ours = cochran_cox_t(0.95, (ratio, 1.0), (2, 99))
        assert stats.t.ppf(0.975, 99) <= ours < stats.t.ppf(0.975, 2)
        assert ours >= satterthwaite_t(0.95, (ratio, 1.0), (2, 99))


def test_without_patient_variance_both_are_the_t_interval() -> None:
    values = [0.31, 0.35, 0.30]
    ours, t = combined_interval(values, np.full((100, 3), 0.32), 50, 0.95), t_interval(values, 0.95)
    assert (ours.interval.low, ours.interval.high) == pytest.approx((t.low, t.high))
    difference = paired_difference(values, [0.0] * 3, np.full((100, 3), 0.32), np.zeros((100, 3)), 50, 0.95)
    assert difference.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


@pytest.mark.parametrize(
    ("values", "replicates", "patients", "reason"),
    [
        ([0.3], [0.2, 0.3], 50, "1 trial"),
        ([], [0.2, 0.3], 50, "0 trials"),
        ([0.3, 0.3, 0.3], [0.2, 0.3], 50, "identical trials"),
        ([math.nan, math.nan], [0.2, 0.3], 50, "undefined"),
        ([0.3, 0.2], [0.2, 0.3], 1, "1 patient"),
        ([0.3, 0.2], [math.nan, math.nan], 50, "undefined"),
    ],
)
def test_what_has_no_interval_says_why(
    values: list[float], replicates: list[float], patients: int, reason: str
) -> None:
    ours = combined_interval(values, shared(np.array(replicates), len(values)), patients, 0.95)
    assert ours.interval.reason == reason
    assert math.isnan(ours.interval.low)
    assert math.isnan(p_value(ours, cochran_cox_t))
    assert trials_needed(ours, 0.95) is None


def test_a_percentile_interval_is_blank_where_nothing_varies() -> None:
    assert percentile_interval(0.3, np.full(50, 0.3), 40, 0.95).reason == "identical patients"
    assert percentile_interval(math.nan, np.full(50, 0.3), 40, 0.95).reason == "undefined"
    assert percentile_interval(0.3, np.array([math.nan]), 40, 0.95).reason == "undefined"
    assert percentile_interval(0.3, np.array([0.1, 0.2]), 1, 0.95).reason == "1 patient"
    assert hierarchical_interval(0.3, np.zeros((9, 1)), 0.95, np.random.default_rng(0)).reason == "1 trial"


def test_the_mean_is_over_the_pathologies_of_the_full_set() -> None:
    values = np.array([[0.2, 0.4, 0.9], [np.nan, 0.4, 0.9]])
    ours = mean_over_pathologies(values, np.array([True, True, False]))
    np.testing.assert_allclose(ours, [0.3, 0.4])


def test_holm_is_the_closed_test_of_bonferroni(rng: np.random.Generator) -> None:
    for _ in range(20):
        p = rng.random(4) ** 3
        subsets = [s for n in range(1, 5) for s in itertools.combinations(range(4), n)]
        expected = [min(1.0, max(len(s) * min(p[list(s)]) for s in subsets if i in s)) for i in range(4)]
        assert holm(p.tolist()) == pytest.approx(expected)
    ours = holm([0.01, math.nan, 0.02])
    assert ours[0] == pytest.approx(0.03), "a contrast that cannot be tested was planned all the same"
    assert math.isnan(ours[1])


@pytest.mark.parametrize(
    ("true", "trial_sd", "patient_sd", "n", "df", "error_sd"),
    [
        (0.06, 0.03, 0.012, 3, 59, 0.0),
        (0.06, 0.03, 0.012, 4, 59, 0.02),
        (0.1, 0.011, 0.0137, 2, 260, 0.0),
        (0.02, 0.001, 0.01, 5, 30, 0.0),
        (0.0, 0.02, 0.01, 3, 40, 0.02),
    ],
)
def test_power_is_the_share_of_simulated_studies_that_find_the_difference(
    true: float, trial_sd: float, patient_sd: float, n: int, df: int, error_sd: float, rng: np.random.Generator
) -> None:
    draws = 20_000
    mean = true + rng.normal(scale=math.hypot(trial_sd / math.sqrt(n), patient_sd), size=draws)
    v1 = trial_sd**2 / n * rng.chisquare(n - 1, draws) / (n - 1)
    v2 = patient_sd**2 * rng.chisquare(df, draws) / df
    t1, t2 = stats.t.ppf(0.975, n - 1), stats.t.ppf(0.975, df)
    found = np.abs(mean) > np.maximum((v1 * t1 + v2 * t2) / np.sqrt(v1 + v2), t2 * np.sqrt(v2 + error_sd**2 / n))
    assert found.mean() == pytest.approx(power(true, trial_sd**2, patient_sd**2, n, df, 0.95, error_sd**2), abs=0.012)


def test_power_is_right_for_few_patients(rng: np.random.Generator) -> None:
    """With 5 degrees of freedom the classes of the patients' variance must not lie off their middles."""
    draws, true, patient_sd = 1_000_000, 0.03, 0.012
    deviations = patient_sd * np.sqrt(rng.chisquare(5, draws) / 5)
    found = np.abs(true + rng.normal(scale=patient_sd, size=draws)) > stats.t.ppf(0.975, 5) * deviations
    assert found.mean() == pytest.approx(power(true, 0.0, patient_sd**2, 5, 5, 0.95), abs=0.002)


def test_needed_numbers_are_the_smallest_that_reach_the_power(rng: np.random.Generator) -> None:
    nothing = np.zeros((2000, 3))
    replicates = shared(rng.normal(0.05, 0.01, size=2000), 3)
    both = paired_difference([0.10, 0.02, 0.05], [0.0, 0.0, 0.0], replicates, nothing, 80, 0.95).both
    n = trials_needed(both, 0.95)
    assert n is not None
    one = both.trial_variance * 3
    assert power(both.interval.mean, one, both.patient_variance, n, 79, 0.95) >= 0.8
    assert power(both.interval.mean, one, both.patient_variance, n - 1, 79, 0.95) < 0.8
    assert patients_needed(both, 80, 0.95) is None, "three trials that vary so much cannot be mended by patients"
    replicates = shared(rng.normal(0.05, 0.1, size=2000), 3)
    wide = paired_difference([0.05, 0.051, 0.049], [0.0] * 3, replicates, nothing, 80, 0.95).both
    assert trials_needed(wide, 0.95) is None, "nor patients by trials"
    more = patients_needed(wide, 80, 0.95)
    assert more is not None
    assert more > 800
    replicates = shared(rng.normal(0.5, 0.01, size=2000), 3)
    clear = paired_difference([0.5, 0.51, 0.49], [0.0] * 3, replicates, nothing, 80, 0.95).both
    assert patients_needed(clear, 80, 0.95) == 80, "not below the number that there is"


def test_two_trials_that_find_a_difference_are_not_said_to_need_more_patients(rng: np.random.Generator) -> None:
    """Power falls again with very many patients, as the quantile of 1 degree of freedom takes over."""
    replicates = shared(rng.normal(0.10785, 0.01372, size=4000), 2)
    values = [0.10785 + 0.0011, 0.10785 - 0.0011]
    both = paired_difference(values, [0.0, 0.0], replicates, np.zeros((4000, 2)), 261, 0.95).both
    assert power(both.interval.mean, both.trial_variance * 2, both.patient_variance, 2, 260, 0.95) > 0.8
    assert patients_needed(both, 261, 0.95) == 261


def test_a_mean_rests_on_the_patients_of_what_varies_most(rng: np.random.Generator) -> None:
    positive = np.array([100, 100, 5])
    even = effective_patients(rng.normal(scale=[0.01, 0.01, 0.0001], size=(4000, 3)), positive, 500)
    assert 100 < even < 220
    ruled = effective_patients(rng.normal(scale=[0.01, 0.01, 0.2], size=(4000, 3)), positive, 500)
    assert 5 <= ruled < 5.5
    nan = np.full((10, 1), np.nan)
    assert effective_patients(nan, np.array([7]), 500) == 7
    ten = effective_patients(rng.normal(size=(4000, 1)) * np.ones(10), np.full(10, 8), 8)
    assert ten == 8, "ten pathologies of the same eight patients are eight patients"


def test_a_replicate_without_a_positive_patient_does_not_define_the_pathology() -> None:
    counts = np.array([[[5, 8, 10]], [[0, 3, 0]], [[0, 0, 0]]])
    sums = pooled_sums(counts, np.arange(3), 3)
    ours = sums.replicates(np.array([[1, 1, 1], [0, 2, 1], [2, 0, 1]], dtype=np.float32))
    assert ours[0, 0] == pytest.approx(5 / 16)
    assert np.isnan(ours[1, 0]), "false positives alone are no IoU of 0: the full set would leave the pathology out"
    assert ours[2, 0] == pytest.approx(5 / 13)


def test_intervals_cover_the_truth_as_often_as_they_say(coverage: ModuleType) -> None:
    assert 0.93 <= coverage.t_coverage(3, 4000, 1) <= 0.97
    studies = coverage.simulate(200, 0.6, 3, 600, 1, 400)
    assert studies.positives > 100
    assert 0.93 <= studies.patients <= 0.97
    assert 0.92 <= studies.both <= 0.98
    assert studies.hierarchical < studies.both
    assert studies.false_findings <= 0.07
    assert studies.blank == 0
    erring = coverage.simulate(200, 0.6, 3, 300, 1, 300, trial_sd=0.02, both_sd=1.0)
    assert erring.false_findings <= 0.07
    assert erring.both >= 0.93
