"""Split the expert images by patient, stratified so that every split has each pathology where that is possible."""

import numpy as np
import numpy.typing as npt


def split_by_patient(
    patient_ids: list[str], positives: npt.NDArray[np.bool_], sizes: dict[str, float], seed: int
) -> npt.NDArray[np.object_]:
    """Assign whole patients to splits by iterative stratification (Sechidis et al. 2011).

    Args:
        patient_ids: length N, one per image.
        positives: bool [N, K], whether an image shows a pathology.
        sizes: the number of images wanted in each split, by the split's name; their sum is N.
        seed: of the order of patients, which decides between equal choices.

    Returns:
        The name of each image's split, object [N]. A pathology with fewer positive patients than splits goes first to
        the split that wants most images.
    """
    rng = np.random.default_rng(seed)
    patients = np.array(sorted(set(patient_ids)))
    rng.shuffle(patients)
    index = {patient: i for i, patient in enumerate(patients)}
    patient_of_image = np.array([index[patient] for patient in patient_ids])
    # of each patient: positive images per pathology, and in the last column images
    counts = np.zeros((len(patients), positives.shape[1] + 1))
    np.add.at(counts, patient_of_image, np.column_stack([positives, np.ones(len(patient_of_image))]).astype(float))
    names = sorted(sizes, key=lambda name: (-sizes[name], name))
    share = np.array([sizes[name] for name in names]) / max(1.0, sum(sizes.values()))
    wanted = share[:, None] * counts.sum(axis=0)[None, :]  # what each split still wants, in the columns of counts
    chosen = np.full(len(patients), -1)
    while (chosen < 0).any():
        free = chosen < 0
        left = (counts[free, :-1] > 0).sum(axis=0)  # free patients that are positive, per pathology
        if left.any():
            column = int(np.where(left > 0, left, np.inf).argmin())  # the rarest pathology
        else:
            column = counts.shape[1] - 1  # only patients without a finding are left: count images
        group = np.flatnonzero(free & (counts[:, column] > 0))
        for patient in group:
            has_room = wanted[:, -1] > 0
            score = np.where(has_room | ~has_room.any(), wanted[:, column], -np.inf)
            split = int(np.lexsort((-wanted[:, -1], -score))[0])
            chosen[patient] = split
            wanted[split] -= counts[patient]
    result: npt.NDArray[np.object_] = np.array([names[split] for split in chosen[patient_of_image]], dtype=object)
    return result
