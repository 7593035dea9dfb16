"""IoU, AUROC, thresholds and intervals against scikit-learn, brute force and scipy."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import jaccard_score, roc_auc_score

from chexseg_ray.evaluation.auroc import auroc
from chexseg_ray.evaluation.intervals import t_interval
from chexseg_ray.evaluation.iou import mask_counts, nan_mean, per_image_iou, pooled_iou
from chexseg_ray.evaluation.thresholds import (
    SEGMENTATION_GRID,
    ScoreHistogram,
    cam_grid,
    choose_cam_thresholds,
    choose_segmentation_thresholds,
    common_pathologies,
    segmentation_grid,
)


def masks(rng: np.random.Generator, density: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    predicted, truth = rng.random((6, 3, 8, 8)) < density, rng.random((6, 3, 8, 8)) < density
    predicted[:2, 0] = truth[1:3, 0] = False
    predicted[:, 2] = truth[:, 2] = False
    return predicted, truth, np.stack([mask_counts(p, t) for p, t in zip(predicted, truth, strict=True)])


def test_pooled_iou_is_scikit_learns_jaccard_over_all_pixels(rng: np.random.Generator) -> None:
    predicted, truth, counts = masks(rng)
    ours = pooled_iou(counts)
    for k in range(2):
        assert ours[k] == pytest.approx(jaccard_score(truth[:, k].ravel(), predicted[:, k].ravel()))
    assert np.isnan(ours[2]), "undefined is NaN"


def test_per_image_iou_is_the_mean_of_scikit_learns(rng: np.random.Generator) -> None:
    predicted, truth, counts = masks(rng)
    for true_pos_only in (True, False):
        ours = per_image_iou(counts, true_pos_only)
        for k in range(2):
            each = []
            for p, t in zip(predicted[:, k], truth[:, k], strict=True):
                if (p.any() and t.any()) if true_pos_only else (p | t).any():
                    each.append(jaccard_score(t.ravel(), p.ravel(), zero_division=0))
            assert ours[k] == pytest.approx(np.mean(each))
        assert np.isnan(ours[2])
    assert np.isnan(nan_mean(np.full((2, 1), np.nan))[0])


def test_auroc_is_scikit_learns_with_ties_and_unlabelled_images(rng: np.random.Generator) -> None:
    scores = rng.integers(0, 6, (40, 2)) / 6
    labels = rng.integers(0, 2, (40, 2)).astype(float)
    labels[:5, 0] = np.nan
    labels[5:9, 0] = -1
    assert auroc(scores, labels)[0] == pytest.approx(roc_auc_score(labels[9:, 0], scores[9:, 0]))
    assert auroc(scores, labels)[1] == pytest.approx(roc_auc_score(labels[:, 1], scores[:, 1]))
    assert np.isnan(auroc(scores, np.ones((40, 2)))).all()


@pytest.mark.parametrize("grid", [SEGMENTATION_GRID, cam_grid(0.05), cam_grid(0.1)], ids=len)
def test_histogram_curves_are_the_thresholds_own_masks(grid: np.ndarray, rng: np.random.Generator) -> None:
    scores = rng.random((5, 2, 9, 7)).astype(np.float32)
    scores[0, 0, :3] = grid[:7]  # scores exactly on thresholds
    truth = rng.random(scores.shape) < 0.3
    histogram = ScoreHistogram(2, grid)
    for s, t in zip(scores, truth, strict=True):
        for k in range(2):
            histogram.add(k, s[k], t[k])
    for k in range(2):
        for i, threshold in enumerate(grid):
            mask = scores[:, k] > float(threshold)
            expected = (mask & truth[:, k]).sum() / (mask | truth[:, k]).sum()
            assert histogram.iou()[k, i] == expected
    assert histogram.positive_pixels().tolist() == truth.sum(axis=(0, 2, 3)).tolist()


def test_a_cam_threshold_is_never_0_and_falls_back_to_the_one_over_all() -> None:
    assert cam_grid(0.05).min() > 0
    assert len(cam_grid(0.05)) == 19
    for step, last in ((0.3, 0.9), (0.07, 0.98), (0.1, 0.9), (0.5, 0.5)):
        assert cam_grid(step).tolist() == pytest.approx([step * i for i in range(1, round(last / step) + 1)]), (
            "up to the last one below 1"
        )
    histogram = ScoreHistogram(3, cam_grid(0.1))
    scores = np.linspace(0, 1, 100, dtype=np.float32)
    histogram.add(0, scores, scores > 0.7)
    histogram.add(1, scores, np.zeros(100, dtype=bool))  # no positives
    histogram.add(2, np.zeros(100, dtype=np.float32), scores > 0.9)  # a curve of zeros
    choices = choose_cam_thresholds(histogram)
    assert [c.source for c in choices] == ["expert_train", "all", "all"]
    assert choices[0].threshold == pytest.approx(0.7)
    assert choices[1].threshold == choices[2].threshold > 0
    empty = choose_cam_thresholds(ScoreHistogram(2, cam_grid(0.1)))
    assert [c.source for c in empty] == ["default", "default"]


def test_segmentation_thresholds_take_validation_then_expert_train_then_the_default() -> None:
    scores = np.linspace(0, 1, 100, dtype=np.float32)
    histograms = [ScoreHistogram(3, SEGMENTATION_GRID) for _ in range(2)]
    for k, cut in enumerate((0.6, 0.3)):
        histograms[0].add(k, scores, scores > cut)
        histograms[1].add(k, scores, scores > 0.8)
    sources = [("validation", histograms[0], np.array([5, 4, 0])), ("expert_train", histograms[1], np.array([9, 9, 0]))]
    choices = choose_segmentation_thresholds(sources, [5, 1], 0.5)
    assert [(c.source, round(c.threshold, 2)) for c in choices] == [
        ("validation", 0.6),
        ("expert_train", 0.8),
        ("default", 0.5),
    ]
    assert common_pathologies(np.array([5, 4, 9]), 5) == [0, 2]
    assert common_pathologies(np.array([1, 3, 2]), 5) == [1]


def test_the_t_interval_is_scipys() -> None:
    values = [0.27, 0.266, 0.274]
    ours = t_interval(values, 0.95)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (ours.low, ours.high) == (pytest.approx(low), pytest.approx(high))
    assert ours.n == 3


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "0 trials"),
        ([0.3], "1 trial"),
        ([0.3, 0.3], "identical trials"),
        ([0.3, math.nan], "defined in 1 of 2 trials"),
    ],
)
def test_an_undefined_interval_is_blank_with_a_reason_never_0(values: list[float], reason: str) -> None:
    interval = t_interval(values, 0.95)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert interval.reason == reason


def test_the_fine_grid_has_low_thresholds_in_place_of_the_papers_0() -> None:
    paper, fine = segmentation_grid("paper"), segmentation_grid("fine")
    np.testing.assert_array_equal(paper, SEGMENTATION_GRID)
    assert paper[0] == 0
    assert fine.dtype == paper.dtype == np.float32
    assert fine[0] == np.float32(0.001)
    assert (np.diff(fine) > 0).all()
    assert set(paper[1:]) < set(fine)
    assert fine[-1] < 1
