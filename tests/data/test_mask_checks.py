"""Masks that were not meant: names spelled otherwise, other units, contours outside, masks against labels."""

import json
import re
import tracemalloc
from typing import Any

import numpy as np
import pytest

from chexseg_ray.data.mask_checks import mask_lines, refuse_absent_masks
from chexseg_ray.data.masks import Rle, area_share, decode_rle, encode_rle, is_empty, read_mask_json
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.errors import InputError

SQUARE = [[[100, 100], [300, 100], [300, 300], [100, 300]]]


def drawn(*entries: dict[str, Any], size: tuple[int, int] = (800, 700)) -> bytes:
    """A file of polygon entries of one image size."""
    return json.dumps({f"id{i}": {"img_size": list(size), **entry} for i, entry in enumerate(entries)}).encode()


def scaled(factor: float, shift: float = 0.0) -> list[list[list[float]]]:
    return [[[x * factor + shift, y * factor + shift] for x, y in SQUARE[0]]]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Pleural effusion", "Pleural Effusion"),
        ("pleural_effusion", "Pleural Effusion"),
        ("Opacity", "Airspace Opacity"),
        ("Airspace Opacities", "Airspace Opacity"),
        ("Cardiomegali", "Cardiomegaly"),
        ("Oedema", "Edema"),
        ("Effusion", "Pleural Effusion"),
        ("Devices", "Support Devices"),
    ],
)
def test_a_name_that_nearly_is_a_pathologys_is_refused(name: str, wanted: str) -> None:
    message = f"m.json: 'id1': has a mask of '{name}', .* did you mean '{wanted}'\\?"
    with pytest.raises(InputError, match=message) as caught:
        read_mask_json(drawn({"Pneumothorax": SQUARE}, {name: SQUARE}), "m.json", PATHOLOGIES)
    assert "\n" not in str(caught.value)
    columns = {wanted: [name]}
    assert not is_empty(read_mask_json(drawn({name: SQUARE}), "m.json", PATHOLOGIES, columns)["id0"][wanted])


@pytest.mark.parametrize("name", ["Pleural effusion", "Cardiomegali"])
def test_a_misspelling_in_one_entry_of_many_is_refused(name: str) -> None:
    right = {"Pleural Effusion": SQUARE, "Cardiomegaly": SQUARE}
    with pytest.raises(InputError, match="did you mean"):
        read_mask_json(drawn(*[right] * 5, {name: SQUARE}), "m.json", PATHOLOGIES)


@pytest.mark.parametrize(
    ("wanted", "entry"),
    [
        (["Edema"], {"Cardiomegaly": SQUARE, "Lung Opacity": SQUARE, "Pneumonia": SQUARE, "Fracture": SQUARE}),
        (["Left Lung"], {"Left Lung": SQUARE, "Right Lung": SQUARE, "Airways": SQUARE}),
        (["Consolidation"], {"Consolidation": SQUARE, "Consolidation/Infiltrate": SQUARE}),
        (["Nodule 1"], {"Nodule 1": SQUARE, "Nodule 2": SQUARE}),
        (["Edema"], {"Aortic enlargement": SQUARE, "ILD": SQUARE, "Herz": SQUARE}),
    ],
)
def test_names_of_other_things_pass(wanted: list[str], entry: dict[str, Any]) -> None:
    assert set(read_mask_json(drawn(entry), "m.json", wanted)["id0"]) == set(wanted)


def test_all_names_of_chexpert_pass_for_each_study_of_some_of_them() -> None:
    from chexseg_ray.data.chexpert import COLUMNS

    data = drawn(dict.fromkeys([*PATHOLOGIES, *COLUMNS[5:]], SQUARE))
    for name in PATHOLOGIES:
        assert not is_empty(read_mask_json(data, "m.json", [name])["id0"][name])


def test_a_missing_name_of_the_run_length_form_gets_the_same_hint() -> None:
    rle = {"size": [2, 3], "counts": encode_rle(np.ones((2, 3), dtype=bool))}
    data = json.dumps({"id0": {"Edema": rle, "pleural effusion": rle}}).encode()
    with pytest.raises(InputError, match=r"Pleural Effusion: is missing \(did you mean 'pleural effusion'\?\)"):
        read_mask_json(data, "m.json", ["Edema", "Pleural Effusion"])
    with pytest.raises(InputError, match=r"Cardiomegaly: is missing \(an empty mask"):
        read_mask_json(data, "m.json", ["Edema", "Cardiomegaly"], {"Edema": ["pleural effusion"]})


@pytest.mark.parametrize("shift", [(1000, 0), (0, 1000), (-400, 0), (0, -400), (1000, 1000)])
def test_a_contour_wholly_outside_its_image_is_refused_and_one_partly_outside_is_not(shift: tuple[int, int]) -> None:
    def moved(x: float, y: float) -> list[list[float]]:
        return [[a + x, b + y] for a, b in SQUARE[0]]

    message = r"'id0', Edema: a contour \(x .*, y .*\) lies outside the image of 700 x 800 pixels"
    with pytest.raises(InputError, match=message):
        read_mask_json(drawn({"Edema": [*SQUARE, moved(*shift)]}), "m.json", ["Edema"])
    partly = moved(*(0 if value == 0 else 450 if value > 0 else -200 for value in shift))
    assert not is_empty(read_mask_json(drawn({"Edema": [partly]}), "m.json", ["Edema"])["id0"]["Edema"])


def test_fractions_of_1_are_refused() -> None:
    with pytest.raises(InputError, match=r"'id1', Edema: all points are within 0 to 1"):
        read_mask_json(drawn({}, {"Edema": scaled(1 / 400)}), "m.json", ["Edema"])
    corner = {"Edema": [[[0, 0], [1, 0], [1, 1]]]}
    assert decode_rle(read_mask_json(drawn(corner), "m.json", ["Edema"])["id0"]["Edema"]).sum() == 3


def test_per_cent_are_refused_where_all_points_lie_in_the_corner_of_large_images() -> None:
    per_cent = {"Edema": scaled(1 / 7)}
    with pytest.raises(InputError, match=r"m\.json: all points are within 0 to 100 and have fractions"):
        read_mask_json(drawn(per_cent, {}, per_cent, per_cent), "m.json", ["Edema"])
    for good in (
        drawn(per_cent, per_cent, per_cent, {"Edema": SQUARE}),
        drawn(per_cent, per_cent, per_cent, size=(300, 300)),
        drawn(per_cent),
        drawn(*[{"Edema": [[[10, 10], [90, 10], [90, 90]]]}] * 3),
    ):
        assert not is_empty(read_mask_json(good, "m.json", ["Edema"])["id0"]["Edema"])


def test_absent_pathologies_of_a_huge_image_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chexseg_ray.data.masks.rasterise", lambda *_: pytest.fail("rasterised"))
    tracemalloc.start()
    masks = read_mask_json(b'{"a": {"img_size": [10000, 10000], "Edema": []}}', "m.json", PATHOLOGIES)["a"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert set(masks) == set(PATHOLOGIES)
    assert all(is_empty(rle) and (rle.height, rle.width) == (10000, 10000) for rle in masks.values())
    small = Rle(7, 5, encode_rle(np.zeros((7, 5), dtype=bool)))
    assert read_mask_json(b'{"a": {"img_size": [7, 5]}}', "m.json", ["Edema"])["a"]["Edema"] == small


def test_masks_that_are_all_empty_are_refused_where_labels_say_that_the_pathology_is_there() -> None:
    labels = np.array([[1, 1], [1, 0], [1, np.nan], [0, 0], [-1, 1]])
    shares = np.zeros((5, 2))
    rule = re.escape("m.json and valid.csv: all masks of 'A' are empty, but 3 of these images have the label 1")
    with pytest.raises(InputError, match=rule):
        refuse_absent_masks(labels, shares, ["A", "B"], "m.json and valid.csv")
    refuse_absent_masks(labels[:, 1:], shares[:, 1:], ["B"], "two labels may be wrong")
    shares[3, 0] = 0.1
    refuse_absent_masks(labels, shares, ["A", "B"], "one mask is there")


def test_mean_areas_and_contradictions_are_described() -> None:
    labels = np.array([[1, 1], [0, 0], [1, np.nan], [0, 0]])
    shares = np.array([[0.1, 0], [0.3, 0], [0, 0], [0, 0]])
    assert mask_lines("validation", labels, shares, ["A", "B"]) == [
        "masks of validation (4 images; mean area): A 2 (20.0 %), B none",
        "masks of validation against the labels: A has label 1 without a mask in 1; A has label 0 with a mask in 1; "
        "B has label 1 without a mask in 1",
    ]
    good = mask_lines("test", labels[:2], np.array([[0.0004, 0.5], [0, 0]]), ["A", "B"])
    assert good == ["masks of test (2 images; mean area): A 1 (0.040 %), B 1 (50.0 %)"]


def test_the_share_of_a_mask(rng: np.random.Generator) -> None:
    mask = rng.random((30, 20)) < 0.3
    assert area_share(Rle(30, 20, encode_rle(mask))) == mask.mean()
