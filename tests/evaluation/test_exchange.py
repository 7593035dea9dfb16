"""The exchange format on CheXlocalize's own sample: what we read, count and write is what its evaluation sees."""

import json
from pathlib import Path

import numpy as np
import pytest
from coco_evaluation import mean_iou
from pycocotools import mask as coco

from chexseg_ray.data.masks import decode_rle, encode_rle, exchange_entry, exchange_json, rasterise, read_mask_json
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.evaluation.iou import mask_counts, per_image_iou


@pytest.fixture(scope="module")
def sample(real_data: Path) -> Path:
    return real_data / "chexlocalize-sample"


def decoded(path: Path) -> dict[str, np.ndarray]:
    masks = read_mask_json(path.read_bytes(), path.name, PATHOLOGIES)
    return {cxr_id: np.stack([decode_rle(rles[name]) for name in PATHOLOGIES]) for cxr_id, rles in masks.items()}


def test_per_image_is_what_chexlocalizes_evaluation_gives(sample: Path) -> None:
    files = sample / "gradcam_segmentations_val_sample.json", sample / "gt_segmentations_val.json"
    predicted, truth = map(decoded, files)
    counts = np.stack([mask_counts(predicted[cxr_id], truth[cxr_id]) for cxr_id in sorted(truth)])
    raw = [json.loads(path.read_text()) for path in files]
    raw[0] = {i: {n: (image.get(n) or image["Lung Opacity"]) for n in PATHOLOGIES} for i, image in raw[0].items()}
    for only in (True, False):
        ours = per_image_iou(counts, true_pos_only=only)
        theirs = [mean_iou(*raw, name, only) for name in PATHOLOGIES]
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    published = dict(zip(PATHOLOGIES, per_image_iou(counts, true_pos_only=True).tolist(), strict=True))
    assert published["Cardiomegaly"] == pytest.approx(0.3662, abs=1e-4)
    assert published["Enlarged Cardiomediastinum"] == pytest.approx(0.4623, abs=1e-4)
    assert published["Support Devices"] == pytest.approx(0.0333, abs=1e-4)
    assert published["Airspace Opacity"] == 0.0


def test_polygons_in_rle_out_is_bit_identical_to_the_published_file(sample: Path) -> None:
    annotations = json.loads((sample / "gt_annotations_val.json").read_text())
    published = json.loads((sample / "gt_segmentations_val.json").read_text())
    for cxr_id, annotation in annotations.items():
        height, width = annotation["img_size"]
        masks = np.stack([rasterise(annotation.get(name, []), height, width) for name in PATHOLOGIES])
        entry = exchange_entry(PATHOLOGIES, masks)
        assert entry == {name: published[cxr_id][name] for name in PATHOLOGIES}


def test_rle_in_rle_out_is_bit_identical(sample: Path) -> None:
    for name in ("gt_segmentations_val.json", "gradcam_segmentations_val_sample.json"):
        read = read_mask_json((sample / name).read_bytes(), name, PATHOLOGIES)
        entries = {
            cxr_id: exchange_entry(PATHOLOGIES, np.stack([decode_rle(rles[n]) for n in PATHOLOGIES]))
            for cxr_id, rles in read.items()
        }
        again = read_mask_json(exchange_json(entries).encode(), name, PATHOLOGIES)
        assert again == read


def test_pycocotools_reads_what_we_write_and_writes_the_same(rng: np.random.Generator) -> None:
    for shape in ((1, 1), (7, 13), (64, 80)):
        for density in (0.0, 0.3, 1.0):
            mask = rng.random(shape) < density
            ours = encode_rle(mask)
            theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            assert ours.encode() == theirs["counts"]
            np.testing.assert_array_equal(coco.decode({"size": list(shape), "counts": ours.encode()}), mask)
