"""Real X-rays: the two exact oracles, and the two full-resolution CheXpert images with polygons and RLE."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from chexseg_ray.data.chexpert import read_csv
from chexseg_ray.data.images import decode_grey
from chexseg_ray.data.masks import decode_rle, encode_rle, read_mask_json
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.pseudo.thresholding import min_max, otsu_mask, upsample


def test_the_published_otsu_masks_are_reproduced_for_all_20_maps(real_data: Path) -> None:
    folder = real_data / "chexlocalize-sample"
    published = json.loads((folder / "gradcam_segmentations_val_sample.json").read_bytes())
    masks = read_mask_json((folder / "gradcam_segmentations_val_sample.json").read_bytes(), "sample", PATHOLOGIES)
    count = 0
    with np.load(folder / "gradcam_maps_val.npz") as maps, (folder / "gradcam_maps_val.csv").open() as stream:
        for row in csv.DictReader(stream):
            cxr_id = row["key"].removesuffix(f"_{row['task']}")
            if row["task"] not in published.get(cxr_id, {}):
                continue
            big = upsample(np.squeeze(maps[row["key"]])[None], int(row["cxr_h"]), int(row["cxr_w"]))
            mask, truth = otsu_mask(min_max(big)[0]), decode_rle(masks[cxr_id][row["task"]])
            union = (mask | truth).sum()
            iou = (mask & truth).sum() / union if union else 1.0
            assert iou > 0.99995, (row["key"], iou)
            count += 1
    assert count == 20


def test_polygons_rasterise_to_the_published_rle_without_one_differing_pixel(real_data: Path) -> None:
    folder = real_data / "chexlocalize-sample"
    drawn = read_mask_json((folder / "gt_annotations_val.json").read_bytes(), "annotations", PATHOLOGIES)
    stored = read_mask_json((folder / "gt_segmentations_val.json").read_bytes(), "segmentations", PATHOLOGIES)
    assert len(drawn) == len(stored) == 2
    for cxr_id, masks in stored.items():
        for name, rle in masks.items():
            assert drawn[cxr_id][name] == rle, (cxr_id, name)
            assert encode_rle(decode_rle(rle)) == rle.counts, "the round trip is bit-identical"


def test_the_two_full_resolution_images_load_at_the_size_of_their_masks(real_data: Path) -> None:
    folder = real_data / "chexlocalize-sample"
    table = read_csv((folder / "valid.csv").read_bytes(), "valid.csv", PATHOLOGIES)
    masks = read_mask_json((folder / "gt_segmentations_val.json").read_bytes(), "m", PATHOLOGIES)
    for row in table.itertuples():
        file = folder / "CheXpert-v1.0" / row.path
        grey = decode_grey(file.read_bytes())
        rle = masks[row.cxr_id]["Edema"]
        assert grey.shape == (rle.height, rle.width)
        assert np.array_equal(grey, np.asarray(Image.open(file)))
    areas = {name: int(decode_rle(rle).sum()) for name, rle in masks["patient64541_study1_view1_frontal"].items()}
    found = [areas[name] for name in ("Enlarged Cardiomediastinum", "Cardiomegaly", "Airspace Opacity")]
    assert found == [962252, 867107, 163040]
    assert decode_rle(masks["patient64542_study1_view1_frontal"]["Support Devices"]).sum() == 47345
