"""Splits by patient, stratified."""

import numpy as np

from chexseg_ray.data.splits import split_by_patient


def test_patients_stay_whole_sizes_are_met_and_every_pathology_is_on_each_side() -> None:
    rng = np.random.default_rng(3)
    patients = [f"p{i}" for i in range(100) for _ in range(int(rng.integers(1, 3)))]
    positives = rng.random((len(patients), 10)) < np.linspace(0.03, 0.5, 10)
    positives[:2, 0] = positives[-2:, 0] = True
    sizes = {"expert_train": len(patients) - 50.0, "validation": 30.0, "test": 20.0}
    split = split_by_patient(patients, positives, sizes, seed=0)
    for patient in set(patients):
        assert len({s for s, p in zip(split, patients, strict=True) if p == patient}) == 1
    for name, size in sizes.items():
        assert abs((split == name).sum() - size) <= 4
    for k in range(10):
        if len({p for p, y in zip(patients, positives[:, k], strict=True) if y}) >= 3:
            assert all(positives[split == name, k].any() for name in ("expert_train", "validation")), k
    assert np.array_equal(split, split_by_patient(patients, positives, sizes, seed=0))


def test_a_single_positive_goes_to_the_largest_side() -> None:
    positives = np.zeros((10, 1), dtype=bool)
    positives[4] = True
    split = split_by_patient([f"p{i}" for i in range(10)], positives, {"a": 7.0, "b": 3.0}, seed=1)
    assert split[4] == "a"
    assert (split == "b").sum() == 3
