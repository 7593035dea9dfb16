"""Split the expert images by patient, stratified so that each pathology is on every side where it can be."""

import numpy as np
import numpy.typing as npt


def split_by_patient(patient_ids: list[str], positives: npt.NDArray[np.bool_], sizes: dict[str, float], seed: int) -> npt.NDArray[np.object_]:
    """Iterative stratification (Sechidis et al. 2011) of whole patients.

    Args:
        patient_ids: length N, one an image.
        positives: bool [N, K], whether an image shows a pathology.
        sizes: the wanted number of images of each split; their sum is N.
        seed: of the order in which equal choices are taken.

    Returns:
        The split's name of each image, object [N]. A pathology with fewer positive patients than splits goes first to the
        split that wants most images.
    """
    rng = np.random.default_rng(seed)
    patients = np.array(sorted(set(patient_ids)))
    rng.shuffle(patients)
    index = {patient: i for i, patient in enumerate(patients)}
    member = np.array([index[p] for p in patient_ids])
    counts = np.zeros((len(patients), positives.shape[1] + 1))  # positive images per pathology, then images
    np.add.at(counts, member, np.column_stack([positives, np.ones(len(member))]).astype(float))
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    share = np.array([sizes[name] for name in names]) / max(1.0, sum(sizes.values()))
    wanted = share[:, None] * counts.sum(axis=0)[None, :]
    chosen = np.full(len(patients), -1)
    while (chosen < 0).any():
        free = chosen < 0
        left = (counts[free, :-1] > 0).sum(axis=0)
        column = int(np.where(left > 0, left, np.inf).argmin()) if left.any() else counts.shape[1] - 1
        group = np.flatnonzero(free & (counts[:, column] > 0))
        for patient in group:
            room = wanted[:, -1] > 0
            score = np.where(room | ~room.any(), wanted[:, column], -np.inf)
            side = int(np.lexsort((-wanted[:, -1], -score))[0])
            chosen[patient] = side
            wanted[side] -= counts[patient]
    result: npt.NDArray[np.object_] = np.array([names[side] for side in chosen[member]], dtype=object)
    return result
