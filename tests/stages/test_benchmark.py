"""Another reader's file: what is refused before anything is trained, and what an image that it lacks counts as."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from report.fakes import commit, graph
from studies import tiny

from chexseg_ray.data.masks import exchange_entry, exchange_json
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.engine.source_tables import SourceTables
from chexseg_ray.engine.tables import manifest_schema, mask_schema
from chexseg_ray.errors import InputError
from chexseg_ray.evaluation.iou import mask_counts
from chexseg_ray.stages.benchmark import Settings, _count, read_benchmark
from chexseg_ray.store.filesystem import Source
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store

SETTINGS = Settings(pathologies=PATHOLOGIES, size=64)
SIZES = {"p1_s1_v1": (30, 20), "p2_s1_v1": (16, 40)}
TURNED = exchange_entry(PATHOLOGIES, np.zeros((10, 20, 30), dtype=bool))


def masks(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {cxr_id: rng.random((10, *size)) < 0.4 for cxr_id, size in SIZES.items()}


@pytest.fixture
def test_split(tmp_path: Path) -> tuple[Store, Record, Record]:
    """Manifest and images of two annotated test images."""
    study, store = graph(tiny(tmp_path)), Store.open(str(tmp_path))
    assert study.benchmark is not None
    rows, small = [], []
    for cxr_id, image_masks in masks(0).items():
        entry = exchange_entry(PATHOLOGIES, image_masks)
        counts = [str(entry[name]["counts"]) for name in PATHOLOGIES]
        image = {"cxr_id": cxr_id, "height": SIZES[cxr_id][0], "width": SIZES[cxr_id][1]}
        facts = {"patient_id": cxr_id[:2], "path": "x", "view": "frontal", "labels": [1] * 10}
        rows.append(image | facts | {"rle_original": counts})
        square = exchange_entry(PATHOLOGIES, np.zeros((10, 64, 64), dtype=bool))
        small.append(image | {"rle": [str(square[name]["counts"]) for name in PATHOLOGIES]})
    manifest, images = (study.benchmark.inputs[role] for role in ("manifest_test", "images_test"))
    annotated = pa.Table.from_pylist(rows, schema=manifest_schema(PATHOLOGIES))
    commit(store, manifest, {"manifest.parquet": annotated}, {})
    squares = pa.Table.from_pylist(small, schema=mask_schema(PATHOLOGIES, 64))
    commit(store, images, {"masks/part-00000.parquet": squares}, {})
    found = store.find(manifest), store.find(images)
    assert found[0] is not None
    assert found[1] is not None
    return store, found[0], found[1]


def source(folder: Path, entries: dict[str, object]) -> Source:
    (folder / "hb.json").write_text(json.dumps(entries))
    return Source(pafs.LocalFileSystem(), str(folder))


def test_counts_are_those_of_masks_at_the_images_own_size_and_an_absent_image_has_none(
    test_split: tuple[Store, Record, Record], tmp_path: Path
) -> None:
    store, manifest, images = test_split
    reader = masks(1)
    entries = json.loads(exchange_json({"p1_s1_v1": exchange_entry(PATHOLOGIES, reader["p1_s1_v1"])}))
    found = read_benchmark(SourceTables(), source(tmp_path, entries), "hb.json", SETTINGS, store, manifest)
    texts = {cxr_id: [found[cxr_id][n].counts if cxr_id in found else "" for n in PATHOLOGIES] for cxr_id in SIZES}
    rows = _count(0, texts, store, manifest, images, SETTINGS)["counts"]
    assert len(rows) == 2 * 10 * 2
    whole = [r for r in rows if r["resolution"] == "original"]
    expected = mask_counts(reader["p1_s1_v1"], masks(0)["p1_s1_v1"])
    assert [[r["intersection"], r["predicted"], r["truth"]] for r in whole[:10]] == expected.tolist()
    assert {r["predicted"] for r in whole[10:]} == {0}
    assert [r["truth"] for r in whole[10:]] == masks(0)["p2_s1_v1"].sum(axis=(1, 2)).tolist()


def test_polygons_and_another_name_of_a_pathology_will_do(
    test_split: tuple[Store, Record, Record], tmp_path: Path
) -> None:
    store, manifest, _ = test_split
    polygons = {"p1_s1_v1": {"img_size": [30, 20], "Lung Opacity": [[[2, 2], [12, 2], [12, 20], [2, 20]]]}}
    found = read_benchmark(SourceTables(), source(tmp_path, polygons), "hb.json", SETTINGS, store, manifest)
    assert found["p1_s1_v1"]["Airspace Opacity"].counts != found["p1_s1_v1"]["Edema"].counts


@pytest.mark.parametrize(
    ("entries", "error"),
    [
        ({"p1_s1_v1": TURNED}, "its masks are 20 x 30 pixels, the expert's 30 x 20"),
        ({"another": TURNED}, "has masks of none of the 2 test images"),
        ({"p1_s1_v1": {"Edema": {"size": [30, 20], "counts": "x"}}}, "hb.json"),
    ],
)
def test_a_file_of_other_images_is_refused(
    entries: dict[str, object], error: str, test_split: tuple[Store, Record, Record], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=error):
        read_benchmark(SourceTables(), source(tmp_path, entries), "hb.json", SETTINGS, *test_split[:2])
    message = "none.json: is not a file: check data.root and the file names in the data section"
    with pytest.raises(InputError, match=message):
        read_benchmark(SourceTables(), source(tmp_path, {}), "none.json", SETTINGS, *test_split[:2])
