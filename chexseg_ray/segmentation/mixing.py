"""p-mixing: which images a sweep point may use, and which of them make up each batch.

Everything is a function of (seed, trial, update), with no state to save: a run that resumes at update u draws what an
undisturbed one would, and points that differ only in p, method or init draw with the same random numbers.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from chexseg_ray.data import streams
from chexseg_ray.errors import InputError


def trial_seed(seed: int, trial: int) -> int:
    """The seed of a trial's network and batches, in [0, 2^31).

    Args:
        seed: of the sweep.
        trial: its number, t >= 0.
    """
    return int(np.random.default_rng([seed, streams.TRIAL_SEED, trial]).integers(2**31))


def weak_subset(ids: Sequence[str], seed: int, trial: int, size: int) -> list[str]:
    """Choose the weak images of one trial.

    Smaller subsets are part of larger ones, and trials are disjoint as long as (t + 1) n <= len(ids). Trial t orders
    the pool by the lowest rank that an image had in any earlier trial, highest first; so its first n images are not
    among the first n of an earlier trial. The order depends on no later trial and on no larger size: an extended sweep
    keeps the subsets that it had.

    Args:
        ids: the pool, sorted.
        seed: of the sweep.
        trial: its number, t >= 0.
        size: n.

    Returns:
        n ids, sorted.

    Raises:
        InputError: the pool has fewer than n images.
    """
    if size > len(ids):
        raise InputError(f"sweep.weak_n={size} exceeds the {len(ids)} accepted weak images: choose a smaller one")
    lowest_rank = np.full(len(ids), len(ids))
    order = np.arange(len(ids))
    for t in range(trial + 1):
        shuffled = np.random.default_rng([seed, streams.WEAK_SUBSET, t]).permutation(len(ids))
        order = shuffled[np.argsort(-lowest_rank[shuffled], kind="stable")]
        rank = np.empty(len(ids), dtype=int)
        rank[order] = np.arange(len(ids))
        lowest_rank = np.minimum(lowest_rank, rank)
    return sorted(ids[i] for i in order[:size])


def expert_subset(ids: Sequence[str], seed: int, trial: int, size: int | None) -> list[str]:
    """Choose the expert images that a point may use; within a trial, smaller subsets are part of larger ones.

    Args:
        ids: the expert training images, sorted.
        seed: of the sweep.
        trial: its number, t >= 0.
        size: n; None for all of them.

    Returns:
        n ids, sorted.

    Raises:
        InputError: there are fewer than n expert images.
    """
    if size is None:
        return sorted(ids)
    if size > len(ids):
        raise InputError(f"sweep.num_expert={size} exceeds the {len(ids)} expert training images: choose a smaller one")
    order = np.random.default_rng([seed, streams.EXPERT_SUBSET, trial]).permutation(len(ids))
    return sorted(ids[i] for i in order[:size])


def draw_batch(
    num_expert: int, num_weak: int, batch_size: int, p: float, seed: int, update: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Draw one batch: for each sample an exact Bernoulli(p), then an image of that set, uniformly with replacement.

    Args:
        num_expert: expert images to draw from; may be 0 only when p = 0.
        num_weak: pseudo-labelled images to draw from; may be 0 only when p = 1.
        batch_size: B.
        p: probability of an expert mask, in [0, 1].
        seed: of the trial (trial_seed).
        update: u >= 0, the batch's number.

    Returns:
        is_expert bool [B], and index int64 [B] into the expert images where is_expert, into the weak images elsewhere.
        Every p compares the same uniform numbers, so a sample that is expert at a smaller p is the same expert image at
        a larger one.
    """
    rng = np.random.default_rng([seed, streams.MIXED_BATCH, update])
    is_expert = rng.random(batch_size) < p  # random() is in [0, 1), so p = 0 and p = 1 are exact
    expert = rng.random(batch_size)
    weak = rng.random(batch_size)
    index = np.where(is_expert, np.floor(expert * num_expert), np.floor(weak * num_weak)).astype(np.int64)
    return is_expert, index
