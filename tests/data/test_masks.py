"""RLE against pycocotools, polygons, and refusals that allocate nothing."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from chexseg_ray.data.masks import Rle, _encode_runs, decode_rle, encode_rle, is_empty, rasterise, read_mask_json
from chexseg_ray.errors import InputError


def test_rle_is_pycocotools_both_ways(rng: np.random.Generator) -> None:
    for height, width, density in (
        (1, 1, 1.0),
        (7, 5, 0.5),
        (40, 33, 0.02),
        (64, 64, 0.9),
        (300, 200, 0.0),
        (200, 300, 1.0),
        (2, 4000, 0.3),
    ):
        mask = rng.random((height, width)) < density
        counts = encode_rle(mask)
        assert counts == coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
        assert np.array_equal(decode_rle(Rle(height, width, counts)), mask)
        assert is_empty(Rle(height, width, counts)) == (not mask.any())


def entry(**masks: dict[str, object]) -> bytes:
    return json.dumps({"id1": masks}).encode()


GOOD = {"size": [4, 5], "counts": encode_rle(np.eye(4, 5, dtype=bool))}


def test_lung_opacity_serves_airspace_opacity() -> None:
    masks = read_mask_json(json.dumps({"id1": {"Lung Opacity": GOOD}}).encode(), "m.json", ["Airspace Opacity"])
    assert masks["id1"]["Airspace Opacity"].counts == GOOD["counts"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no json", "no JSON"),
        (b"[]", "not {cxr_id"),
        (entry(), "'id1', Edema: is missing"),
        (entry(Edema={"size": [4, 5], "counts": "4"}), "runs cover"),
        (entry(Edema={"size": [4, 5], "counts": "a"}), "middle of a number"),
        (entry(Edema={"size": [40000, 50000], "counts": GOOD["counts"]}), "out of bounds"),
        (entry(Edema={"size": [True, 20], "counts": GOOD["counts"]}), r"not \[height, width\]"),
        (entry(Edema={"size": [4], "counts": GOOD["counts"]}), r"not \[height, width\]"),
        (entry(Edema={"size": [4, 5], "counts": [20]}), "counts as text"),
        (entry(Edema={"size": [4, 5], "counts": "\x01"}), "no COCO run-length string"),
        (
            entry(Edema={"size": [4, 5], "counts": "\u00e9" + GOOD["counts"]}),
            "hold 'é', which no COCO run-length string",
        ),
        (entry(Edema={"size": [4, 5], "counts": "o" * 9}), "counts"),
        (entry(Edema={"size": [4, 5], "counts": _encode_runs([10, -4, 14])}), "a run of negative length"),
        (entry(Edema=GOOD, img_size=[0, 3]), r"not \[height, width\]"),
    ],
)
def test_a_fault_names_id_and_pathology(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_mask_json(data, "m.json", ["Edema"])


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1e10", "1" + "0" * 400, "true", '"3"', "null"])
def test_a_point_that_is_not_two_numbers_in_pixels_is_refused(value: str) -> None:
    data = f'{{"id1": {{"img_size": [6, 5], "Edema": [[[1, 1], [{value}, 1], [3, 3]]]}}}}'.encode()
    with pytest.raises(
        InputError, match=r"'id1', Edema: a contour has the point \[.*\], not \[x, y\] in pixels: correct the file"
    ):
        read_mask_json(data, "a.json", ["Edema"])


def test_a_polygon_may_leave_its_image() -> None:
    data = json.dumps({"id1": {"img_size": [6, 5], "Edema": [[[-4, -4], [20.5, -4], [20, 20], [-4, 20]]]}}).encode()
    assert decode_rle(read_mask_json(data, "a.json", ["Edema"])["id1"]["Edema"]).all()


def test_masks_of_one_image_have_one_size() -> None:
    turned = {"size": [5, 4], "counts": GOOD["counts"]}
    with pytest.raises(InputError, match=r"'id1', Edema: size 5 x 4 is not that of its other masks \(4 x 5\)"):
        read_mask_json(entry(Cardiomegaly=GOOD, Edema=turned), "m.json", ["Cardiomegaly", "Edema"])


def test_an_annotation_file_is_rasterised_and_absent_pathologies_are_empty() -> None:
    square = [[[1, 1], [3, 1], [3, 3], [1, 3]]]
    data = json.dumps({"id1": {"img_size": [6, 5], "Edema": square}}).encode()
    masks = read_mask_json(data, "a.json", ["Edema", "Cardiomegaly"])["id1"]
    assert decode_rle(masks["Edema"]).sum() == 9
    assert np.array_equal(decode_rle(masks["Edema"]), rasterise(square, 6, 5))
    assert is_empty(masks["Cardiomegaly"])


def test_a_mask_file_of_another_data_set_may_use_its_own_names() -> None:
    rle = {"size": [2, 3], "counts": encode_rle(np.array([[1, 0, 0], [0, 1, 1]], dtype=bool))}
    data = json.dumps({"img_a": {"opac": rle, "Edema": rle}}).encode()
    masks = read_mask_json(data, "own.json", ["Airspace Opacity", "Edema"], {"Airspace Opacity": ["opac"]})
    assert masks["img_a"]["Airspace Opacity"].counts == rle["counts"] == masks["img_a"]["Edema"].counts
    with pytest.raises(InputError, match="Airspace Opacity: is missing"):
        read_mask_json(data, "own.json", ["Airspace Opacity"])


def test_a_mask_is_not_decoded_beyond_its_bounds() -> None:
    """A mask of a table, which no mask file's check has seen."""
    whole = 40_000 * 50_000
    for rle in (Rle(40_000, 50_000, _encode_runs([whole])), Rle(0, 5, ""), Rle(-4, -5, GOOD["counts"])):
        with pytest.raises(ValueError, match="is out of bounds"):
            decode_rle(rle)
    for height, width in ((4, 6), (2, 10**7)):
        with pytest.raises(ValueError, match=f"runs cover 20 pixels, size {height} x {width}"):
            decode_rle(Rle(height, width, GOOD["counts"]))
