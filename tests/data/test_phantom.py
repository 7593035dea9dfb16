"""The phantom data set: CheXpert's layout, the paper's structure."""

import csv
import io

import numpy as np

from chexseg_ray.data.chexpert import COLUMNS, read_csv
from chexseg_ray.data.masks import exchange_entry, exchange_json, read_mask_json
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.data.phantom import csv_text, plan_phantom, render

IMAGES = plan_phantom(120, 30, 20, seed=0)


def test_the_plan_is_seeded_and_has_patients_with_several_studies_and_views() -> None:
    assert plan_phantom(120, 30, 20, seed=0) == IMAGES
    assert plan_phantom(120, 30, 20, seed=1) != IMAGES
    train = [i for i in IMAGES if i.split == "train"]
    assert any("study2" in i.path for i in train)
    assert any(i.lateral for i in train)
    assert sum(bool(i.findings) for i in IMAGES if i.split == "valid") == 30
    assert len({i.cxr_id for i in IMAGES}) == len(IMAGES)


def test_csvs_are_chexperts() -> None:
    for split, columns in (("train", COLUMNS), ("valid", COLUMNS), ("test", COLUMNS[:1] + COLUMNS[5:])):
        text = csv_text(IMAGES, split)
        assert tuple(next(csv.reader(io.StringIO(text)))) == columns
        table = read_csv(text.encode(), f"{split}.csv", PATHOLOGIES)
        values = table[list(PATHOLOGIES)].to_numpy(dtype=float)
        found = {str(v) for v in np.unique(values)}
        assert found == ({"-1.0", "0.0", "1.0", "nan"} if split == "train" else {"0.0", "1.0"})


def test_masks_are_chexlocalizes_and_findings_have_pixels() -> None:
    for image in IMAGES[:40]:
        grey, truth, second = render(image, 96)
        assert grey.dtype == np.uint8
        assert max(grey.shape) == 96
        written = exchange_json({image.cxr_id: exchange_entry(list(truth), np.stack(list(truth.values())))})
        read = read_mask_json(written.encode(), "m", PATHOLOGIES)
        assert set(read[image.cxr_id]) == set(PATHOLOGIES)
        for name in PATHOLOGIES:
            assert truth[name].any() == (name in image.findings), (image.cxr_id, name)
            assert second[name].shape == truth[name].shape
    again, _, _ = render(IMAGES[39], 96)
    assert np.array_equal(again, grey)


def test_pathologies_differ_in_size_and_frequency_and_nest_as_in_the_paper() -> None:
    images = [i for i in plan_phantom(0, 150, 0, seed=2) if not i.lateral]
    areas: dict[str, list[float]] = {name: [] for name in PATHOLOGIES}
    for image in images:
        _, truth, _ = render(image, 96)
        for name, mask in truth.items():
            if mask.any():
                areas[name].append(mask.mean())
        if truth["Cardiomegaly"].any():
            assert (truth["Cardiomegaly"] <= truth["Enlarged Cardiomediastinum"]).all()
        for child in ("Edema", "Consolidation", "Atelectasis"):
            assert (truth[child] <= truth["Airspace Opacity"]).all()
    frequency = {name: len(values) / len(images) for name, values in areas.items()}
    size = {name: float(np.mean(values)) for name, values in areas.items()}
    assert frequency["Lung Lesion"] < 0.14 < frequency["Cardiomegaly"] < frequency["Airspace Opacity"]
    assert size["Lung Lesion"] < 0.01 < 0.04 < size["Cardiomegaly"] < size["Enlarged Cardiomediastinum"]
    assert size["Support Devices"] < 0.03


def test_a_second_reader_agrees_mostly() -> None:
    ratios = []
    for image in [i for i in IMAGES if "Cardiomegaly" in i.findings][:20]:
        _, truth, second = render(image, 96)
        a, b = truth["Cardiomegaly"], second["Cardiomegaly"]
        ratios.append((a & b).sum() / (a | b).sum())
    assert 0.5 < float(np.median(ratios)) < 0.98
