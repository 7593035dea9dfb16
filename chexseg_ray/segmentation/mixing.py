"""p-mixing: which images a sweep point may use, and which of them make up each batch.

Everything is a function of (seed, trial, update), with no state to save: a run that resumes at update u draws what an
undisturbed one would, and points that differ in p, method or init alone draw with the same random numbers.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from chexseg_ray.errors import InputError


def trial_seed(seed: int, trial: int) -> int:
    """The model and sampling seed of a trial, in [0, 2^31)."""
    return int(np.random.default_rng([seed, 101, trial]).integers(2**31))


def weak_subset(ids: Sequence[str], seed: int, trial: int, size: int) -> list[str]:
    """The weak images of one trial: nested by size, disjoint across trials wherever trials x size fits into the pool.

    Trial t orders the pool by the rank that an image first had in an earlier trial, latest first; so its first n are images
    that no earlier trial has among its own first n, as long as (t + 1) n <= len(ids). It depends on no later trial and no
    larger size: an extended sweep keeps the subsets that it had.

    Args:
        ids: the pool, sorted.
        seed: of the sweep.
        trial: t >= 0.
        size: n.

    Returns:
        n ids, sorted.

    Raises:
        InputError: the pool is smaller than n.
    """
    if size > len(ids):
        raise InputError(f"sweep.weak_n={size} exceeds the {len(ids)} accepted weak images: choose a smaller one")
    earliest = np.full(len(ids), len(ids))
    order = np.arange(len(ids))
    for t in range(trial + 1):
        shuffled = np.random.default_rng([seed, 202, t]).permutation(len(ids))
        order = shuffled[np.argsort(-earliest[shuffled], kind="stable")]
        rank = np.empty(len(ids), dtype=int)
        rank[order] = np.arange(len(ids))
        earliest = np.minimum(earliest, rank)
    return sorted(ids[i] for i in order[:size])


def expert_subset(ids: Sequence[str], seed: int, trial: int, size: int | None) -> list[str]:
    """The expert images that a point may use: nested by size within a trial; all of them when size is None.

    Raises:
        InputError: fewer than `size` expert images exist.
    """
    if size is None:
        return sorted(ids)
    if size > len(ids):
        raise InputError(f"sweep.num_expert={size} exceeds the {len(ids)} expert training images: choose a smaller one")
    order = np.random.default_rng([seed, 303, trial]).permutation(len(ids))
    return sorted(ids[i] for i in order[:size])


def draw_batch(
    num_expert: int, num_weak: int, batch_size: int, p: float, seed: int, update: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """One batch: an exact Bernoulli(p) for every sample, then an image of that set uniformly with replacement.

    Args:
        num_expert: expert images to draw from; may be 0 only when p = 0.
        num_weak: pseudo-labelled images to draw from; may be 0 only when p = 1.
        batch_size: B.
        p: probability of an expert mask, in [0, 1].
        seed: of the trial.
        update: u >= 0, the batch's number.

    Returns:
        is_expert bool [B], and index int64 [B] into the set that is_expert says. For two values of p the coins are the same
        uniform numbers, so a sample that is expert at the smaller p is the same expert image at the larger.
    """
    rng = np.random.default_rng([seed, 404, update])
    is_expert = rng.random(batch_size) < p  # random() is in [0, 1): never below 0, always below 1
    expert = rng.random(batch_size)
    weak = rng.random(batch_size)
    index = np.where(is_expert, np.floor(expert * num_expert), np.floor(weak * num_weak)).astype(np.int64)
    return is_expert, index
