"""p-mixing: exact shares, paired trials, nested and disjoint weak sets."""

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from chexseg_ray.segmentation.mixing import draw_batch, expert_subset, trial_seed, weak_subset

IDS = [f"patient{i:03d}" for i in range(300)]
DRAWS = 6000


def shares(p: float) -> np.ndarray:
    return np.array([draw_batch(147, 100, 8, p, seed=5, update=u)[0].sum() for u in range(DRAWS)])


@pytest.mark.parametrize("p", [0.2, 0.3, 0.4, 0.6, 0.8, 0.85, 0.9])
def test_the_share_of_expert_masks_is_p_and_not_its_neighbour(p: float) -> None:
    """The released sampler gives 0.80 for 0.85 and 0.50 for 0.6; 48,000 samples tell .01 apart."""
    counts = shares(p)
    assert binomtest(int(counts.sum()), DRAWS * 8, p).pvalue > 1e-3
    assert binomtest(int(counts.sum()), DRAWS * 8, p - 0.05).pvalue < 1e-9


def test_samples_of_a_batch_are_independent() -> None:
    counts = np.bincount(shares(0.6), minlength=9)
    from scipy.stats import binom

    expected = binom.pmf(np.arange(9), 8, 0.6) * DRAWS
    low = expected < 5
    merged = [np.append(x[~low], x[low].sum()) for x in (counts, expected)]
    assert chisquare(*merged).pvalue > 1e-3


def test_p_0_and_p_1_are_exact() -> None:
    assert shares(0.0).sum() == 0
    assert shares(1.0).sum() == DRAWS * 8
    assert not draw_batch(0, 10, 8, 0.0, 0, 0)[0].any(), "p = 0 needs no expert image"
    assert draw_batch(10, 0, 8, 1.0, 0, 0)[0].all(), "p = 1 needs no weak image"


def test_each_set_is_drawn_uniformly() -> None:
    expert, weak = np.zeros(13), np.zeros(7)
    for u in range(DRAWS):
        is_expert, index = draw_batch(13, 7, 8, 0.5, seed=1, update=u)
        np.add.at(expert, index[is_expert], 1)
        np.add.at(weak, index[~is_expert], 1)
    assert chisquare(expert).pvalue > 1e-3
    assert chisquare(weak).pvalue > 1e-3


def test_a_batch_is_a_function_of_seed_and_update_and_pairs_over_p() -> None:
    for u in range(50):
        low, low_index = draw_batch(147, 100, 8, 0.4, seed=9, update=u)
        high, high_index = draw_batch(147, 100, 8, 0.9, seed=9, update=u)
        again = draw_batch(147, 100, 8, 0.4, seed=9, update=u)
        assert np.array_equal(low, again[0])
        assert np.array_equal(low_index, again[1])
        assert (low <= high).all()
        assert np.array_equal(low_index[low], high_index[low])
        assert np.array_equal(low_index[~high], high_index[~high])


@pytest.mark.parametrize(("trials", "size"), [(3, 100), (2, 150), (5, 60), (3, 10), (1, 300), (7, 42)])
def test_weak_sets_are_disjoint_across_trials_where_the_pool_allows(trials: int, size: int) -> None:
    chosen = [set(weak_subset(IDS, 0, t, size)) for t in range(trials)]
    assert all(len(c) == size for c in chosen)
    assert len(set.union(*chosen)) == trials * size


def test_weak_sets_are_nested_by_size_and_depend_on_nothing_else() -> None:
    for trial in range(4):
        sets = [set(weak_subset(IDS, 0, trial, n)) for n in (10, 75, 100, 300)]
        assert sets[0] < sets[1] < sets[2] < sets[3]
        assert weak_subset(IDS, 1, trial, 75) != weak_subset(IDS, 0, trial, 75)
    with pytest.raises(ValueError, match="301 exceeds the 300"):
        weak_subset(IDS, 0, 0, 301)


def test_weak_sets_are_random_samples() -> None:
    """Every image is as likely as another in a later trial too, over seeds."""
    hits = np.zeros(30)
    ids = [f"{i:02d}" for i in range(30)]
    for seed in range(600):
        for cxr_id in weak_subset(ids, seed, 2, 5):
            hits[int(cxr_id)] += 1
    assert chisquare(hits).pvalue > 1e-3


def test_expert_subsets_are_nested_and_whole_by_default() -> None:
    assert set(expert_subset(IDS, 0, 1, 10)) < set(expert_subset(IDS, 0, 1, 25))
    assert expert_subset(IDS[::-1], 0, 1, None) == IDS
    assert trial_seed(0, 1) != trial_seed(0, 2)
