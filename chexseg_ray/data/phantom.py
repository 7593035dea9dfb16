"""A phantom data set in exactly the layout of CheXpert and CheXlocalize.

`plan_phantom` decides everything but pixels: patients, images and findings; `render` draws one image; `csv_text` writes
the table of one split.
"""

import csv
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chexseg_ray.data import streams
from chexseg_ray.data.chexpert import COLUMNS
from chexseg_ray.data.pathologies import PATHOLOGIES, names_of
from chexseg_ray.data.phantom_anatomy import Anatomy, PhantomPainter, second_reader

LICENCE = (
    "Phantom images, drawn by chexseg_ray: no patient's data, MIT like the code. "
    "They test software and teach nothing about medicine; not for clinical use."
)
ROOT = "CheXpert-v1.0"
WEAK_CSV, EXPERT_CSV, TEST_CSV = f"{ROOT}/train.csv", f"{ROOT}/valid.csv", f"{ROOT}/test_labels.csv"
EXPERT_MASKS = "CheXlocalize/gt_segmentations_val.json"
TEST_MASKS = "CheXlocalize/gt_segmentations_test.json"
SECOND_READER = "CheXlocalize/hb_segmentations_test.json"

# Frequency of each independent finding in a study. As in CheXpert, Lung Lesion and Pneumothorax are rare, and Support
# Devices are common.
_FREQUENCY = {
    "Cardiomegaly": 0.22,
    "Lung Lesion": 0.08,
    "Edema": 0.22,
    "Consolidation": 0.16,
    "Atelectasis": 0.20,
    "Pneumothorax": 0.09,
    "Pleural Effusion": 0.32,
    "Support Devices": 0.45,
}
_WIDENED = 0.12  # frequency of Enlarged Cardiomediastinum where there is no Cardiomegaly
_OTHER_OPACITY = 0.15  # frequency of Airspace Opacity where there is no Edema, Consolidation or Atelectasis


@dataclass(frozen=True)
class PhantomImage:
    """One image to draw.

    Args:
        path: below the data root.
        split: train, valid or test.
        patient_seed: seed of the anatomy and the labels, which a patient's images share.
        image_seed: seed of everything else in the image.
        lateral: whether the view is lateral, not frontal.
        findings: the pathologies to draw.
        sex: Female or Male.
        age: in years.
    """

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
        """The image's id, such as patient00001_study1_view1_frontal."""
        return self.path.split("/", 2)[2].removesuffix(".jpg").replace("/", "_")


def _draw_findings(rng: np.random.Generator) -> frozenset[str]:
    """Draw the findings of a study; Cardiomegaly and the opacities bring the pathologies that include them."""
    found = {name for name, frequency in _FREQUENCY.items() if rng.random() < frequency}
    if "Cardiomegaly" in found or rng.random() < _WIDENED:
        found.add("Enlarged Cardiomediastinum")
    if found & {"Edema", "Consolidation", "Atelectasis"} or rng.random() < _OTHER_OPACITY:
        found.add("Airspace Opacity")
    return frozenset(found)


def plan_phantom(
    num_train_patients: int, num_expert_images: int, num_test_images: int, seed: int
) -> list[PhantomImage]:
    """Decide which patients and images the data set has.

    Args:
        num_train_patients: number of patients of train.csv, each with one to three studies of one or two views.
        num_expert_images: number of annotated images (with at least one finding) of valid.csv; normal ones are added.
        num_test_images: the same for the test set.
        seed: of all random choices.

    Returns:
        The images: train, valid, test, and by patient, study and view within each.
    """
    out: list[PhantomImage] = []
    number = 0
    for split, wanted in (("train", num_train_patients), ("valid", num_expert_images), ("test", num_test_images)):
        count = 0
        while count < wanted:
            number += 1
            images = _patient(split, number, seed)
            out += images
            if split == "train":
                count += 1
            else:
                count += sum(bool(image.findings) for image in images)
    return out


def _patient(split: str, number: int, seed: int) -> list[PhantomImage]:
    """Draw one patient, identified by a number from 1, and return the images of this patient."""
    rng = np.random.default_rng([seed, number])
    sex = ("Female", "Male")[int(rng.integers(2))]
    age = int(rng.integers(18, 91))
    images: list[PhantomImage] = []
    num_studies = 1
    if split == "train":
        num_studies = int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.10]))
    for study in range(1, num_studies + 1):
        findings = _draw_findings(rng)
        views = ["frontal"]
        if split == "train" and rng.random() < 0.15:
            views.append("lateral")
        for number_in_study, view in enumerate(views, start=1):
            images.append(
                PhantomImage(
                    path=f"{ROOT}/{split}/patient{number:05d}/study{study}/view{number_in_study}_{view}.jpg",
                    split=split,
                    patient_seed=(seed, number),
                    image_seed=(seed, 1_000_000 + len(images) + 10 * number),
                    lateral=view == "lateral",
                    findings=findings,
                    sex=sex,
                    age=age,
                )
            )
    return images


def render(
    image: PhantomImage, long_side: int
) -> tuple[npt.NDArray[np.uint8], dict[str, npt.NDArray[np.bool_]], dict[str, npt.NDArray[np.bool_]]]:
    """Draw one image and its masks.

    Args:
        image: what to draw.
        long_side: of the image, in pixels.

    Returns:
        The image uint8 [height, width], and twice a mask bool [height, width] for each of the ten pathologies, by name:
        the truth, and a second reader's version of it.
    """
    rng = np.random.default_rng(image.image_seed)
    anatomy = Anatomy.draw(np.random.default_rng(image.patient_seed), image.lateral)
    short = round(long_side * rng.uniform(0.80, 0.95))
    is_portrait = image.lateral or rng.random() < 0.4
    size = (long_side, short) if is_portrait else (short, long_side)
    grey, found = PhantomPainter(anatomy, image.findings, image.lateral, size, rng).paint()
    truth = {name: found.get(name, np.zeros(size, dtype=bool)) for name in PATHOLOGIES}
    second = {name: second_reader(mask, rng) if mask.any() else mask for name, mask in truth.items()}
    return grey, truth, second


def csv_text(images: list[PhantomImage], split: str) -> str:
    """Write the CSV of one split.

    Args:
        images: of all splits.
        split: train (labelled as a report labeller does, with uncertain and blank labels), valid (labelled as
            radiologists do, with 0 and 1) or test (as valid, without the columns Sex, Age, Frontal/Lateral and AP/PA).

    Returns:
        The file's text.
    """
    columns = list(COLUMNS)
    if split == "test":
        columns = [column for column in COLUMNS if column not in ("Sex", "Age", "Frontal/Lateral", "AP/PA")]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for image in images:
        if image.split == split:
            writer.writerow(_csv_row(image))
    return stream.getvalue()


def _csv_row(image: PhantomImage) -> dict[str, str | int]:
    """Build an image's row, with a value for each of CheXpert's columns."""
    row: dict[str, str | int] = {
        "Path": image.path.removeprefix(f"{ROOT}/") if image.split == "test" else image.path,
        "Sex": image.sex,
        "Age": image.age,
        "Frontal/Lateral": "Lateral" if image.lateral else "Frontal",
        "AP/PA": "" if image.lateral else "AP",
    }
    # A report is about a study, so the views of a study share their labels.
    study = int(image.path.split("study")[1].split("/")[0])
    rng = np.random.default_rng([*image.patient_seed, streams.PHANTOM_REPORT, study])
    for pathology in (*PATHOLOGIES, "Pneumonia", "Pleural Other", "Fracture"):
        is_present = pathology in image.findings
        if image.split == "train":
            label = _report_label(is_present, rng)
        else:
            label = "1.0" if is_present else "0.0"
        row[names_of(pathology)[-1]] = label
    blank = "" if image.split == "train" else "0.0"
    row["No Finding"] = blank if image.findings else "1.0"
    return row


def _report_label(is_present: bool, rng: np.random.Generator) -> str:
    """Draw the label that a report labeller would give: 1.0, 0.0, -1.0 (uncertain) or blank."""
    if is_present:
        return str(rng.choice(["1.0", "-1.0", ""], p=[0.90, 0.06, 0.04]))
    return str(rng.choice(["", "0.0", "-1.0"], p=[0.70, 0.25, 0.05]))
