"""A phantom data set in exactly the CheXpert + CheXlocalize layout: who is in it, what they have, and its files' texts.

`plan_phantom` decides everything but pixels; `render` draws one image; `csv_text` writes the tables.
"""

import csv
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chexseg_ray.data.chexpert import COLUMNS
from chexseg_ray.data.pathologies import PATHOLOGIES, names_of
from chexseg_ray.data.phantom_anatomy import Anatomy, PhantomPainter, second_reader

LICENCE = (
    "Phantom images, drawn by chexseg_ray: no patient's data, MIT like the code. They test software and teach nothing about "
    "medicine; not for clinical use."
)
ROOT = "CheXpert-v1.0"
WEAK_CSV, EXPERT_CSV, TEST_CSV = f"{ROOT}/train.csv", f"{ROOT}/valid.csv", f"{ROOT}/test_labels.csv"
EXPERT_MASKS = "CheXlocalize/gt_segmentations_val.json"
TEST_MASKS = "CheXlocalize/gt_segmentations_test.json"
SECOND_READER = "CheXlocalize/hb_segmentations_test.json"

# frequency of each independent finding in a study; Lung Lesion and Pneumothorax are rare, Support Devices common, as in CheXpert
_FREQUENCY = {
    "Cardiomegaly": 0.22, "Lung Lesion": 0.08, "Edema": 0.22, "Consolidation": 0.16, "Atelectasis": 0.20,
    "Pneumothorax": 0.09, "Pleural Effusion": 0.32, "Support Devices": 0.45,
}  # fmt: skip
_WIDENED = 0.12  # Enlarged Cardiomediastinum without Cardiomegaly
_OTHER_OPACITY = 0.15  # Airspace Opacity without one of its children


@dataclass(frozen=True)
class PhantomImage:
    """One image to draw: its path below the data root, its view and what can be seen in it."""

    path: str
    split: str
    patient_seed: tuple[int, int]
    image_seed: tuple[int, int]
    lateral: bool
    findings: frozenset[str]
    sex: str
    age: int

    @property
    def cxr_id(self) -> str:
        return self.path.split("/", 2)[2].removesuffix(".jpg").replace("/", "_")


def _draw_findings(rng: np.random.Generator) -> frozenset[str]:
    found = {name for name, frequency in _FREQUENCY.items() if rng.random() < frequency}
    if "Cardiomegaly" in found or rng.random() < _WIDENED:
        found.add("Enlarged Cardiomediastinum")
    if found & {"Edema", "Consolidation", "Atelectasis"} or rng.random() < _OTHER_OPACITY:
        found.add("Airspace Opacity")
    return frozenset(found)


def plan_phantom(num_train_patients: int, num_expert_images: int, num_test_images: int, seed: int) -> list[PhantomImage]:
    """Who is in the data set.

    Args:
        num_train_patients: patients of train.csv, each with one to three studies of one or two views.
        num_expert_images: annotated images (at least one finding) of valid.csv; normal ones come on top.
        num_test_images: the same for the test set.
        seed: of everything.

    Returns:
        The images in path order.
    """
    out: list[PhantomImage] = []
    number = 0
    for split, wanted in (("train", num_train_patients), ("valid", num_expert_images), ("test", num_test_images)):
        count = 0
        while count < wanted:
            number += 1
            images = _patient(split, number, seed)
            out += images
            count += 1 if split == "train" else sum(bool(image.findings) for image in images)
    return out


def _patient(split: str, number: int, seed: int) -> list[PhantomImage]:
    rng = np.random.default_rng([seed, number])
    sex, age = ("Female", "Male")[int(rng.integers(2))], int(rng.integers(18, 91))
    images: list[PhantomImage] = []
    studies = int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.10])) if split == "train" else 1
    for study in range(1, studies + 1):
        findings = _draw_findings(rng)
        views = ["frontal", "lateral"] if split == "train" and rng.random() < 0.15 else ["frontal"]
        for view, name in enumerate(views, start=1):
            path = f"{ROOT}/{split}/patient{number:05d}/study{study}/view{view}_{name}.jpg"
            seeds = (seed, number), (seed, 1_000_000 + len(images) + 10 * number)
            images.append(PhantomImage(path, split, *seeds, name == "lateral", findings, sex, age))
    return images


def render(image: PhantomImage, long_side: int) -> tuple[npt.NDArray[np.uint8], dict[str, npt.NDArray[np.bool_]], dict[str, npt.NDArray[np.bool_]]]:
    """Draw one image.

    Returns:
        uint8 [height, width] (the long side is `long_side` pixels), and bool masks of the same size for all ten pathologies:
        the truth, and a second reader's version of it.
    """
    rng = np.random.default_rng(image.image_seed)
    anatomy = Anatomy.draw(np.random.default_rng(image.patient_seed), image.lateral)
    short = round(long_side * rng.uniform(0.80, 0.95))
    size = (long_side, short) if image.lateral or rng.random() < 0.4 else (short, long_side)
    grey, found = PhantomPainter(anatomy, image.findings, image.lateral, size, rng).paint()
    truth = {name: found.get(name, np.zeros(size, dtype=bool)) for name in PATHOLOGIES}
    return grey, truth, {name: second_reader(mask, rng) if mask.any() else mask for name, mask in truth.items()}


def csv_text(images: list[PhantomImage], split: str) -> str:
    """The CSV of one split: train.csv as a report labeller writes it, valid.csv as radiologists do, test without Sex to AP/PA."""
    columns = [c for c in COLUMNS if split != "test" or c not in ("Sex", "Age", "Frontal/Lateral", "AP/PA")]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for image in images:
        if image.split == split:
            writer.writerow(_csv_row(image))
    return stream.getvalue()


def _csv_row(image: PhantomImage) -> dict[str, str | int]:
    path = image.path if image.split != "test" else image.path.removeprefix(f"{ROOT}/")
    view = {"Frontal/Lateral": "Lateral" if image.lateral else "Frontal", "AP/PA": "" if image.lateral else "AP"}
    row: dict[str, str | int] = {"Path": path, "Sex": image.sex, "Age": image.age, **view}
    study = int(image.path.split("study")[1].split("/")[0])
    rng = np.random.default_rng([*image.patient_seed, 77, study])  # a report is about a study: its views share their labels
    for pathology in (*PATHOLOGIES, "Pneumonia", "Pleural Other", "Fracture"):
        present = pathology in image.findings
        row[names_of(pathology)[-1]] = _reported(present, rng) if image.split == "train" else ("1.0" if present else "0.0")
    normal = not image.findings
    row["No Finding"] = ("1.0" if normal else "") if image.split == "train" else ("1.0" if normal else "0.0")
    return row


def _reported(present: bool, rng: np.random.Generator) -> str:
    """What a report labeller makes of a finding: present 0.90 1, .06 uncertain, .04 blank; absent .70 blank, .25 0, .05 uncertain."""
    values, chances = (["1.0", "-1.0", ""], [0.90, 0.06, 0.04]) if present else (["", "0.0", "-1.0"], [0.70, 0.25, 0.05])
    return str(rng.choice(values, p=chances))
