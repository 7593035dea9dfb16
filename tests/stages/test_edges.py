"""Studies at the edges of the grid, and on real X-rays."""

import shutil
from pathlib import Path

import pytest
from studies import TINY, Job

from chexseg_ray.store.step import Record

pytestmark = pytest.mark.ray


def records(store: Path, name: str) -> list[Record]:
    return [Record.from_json(p.read_bytes()) for p in sorted(store.glob(f"{name}/*/record.json"))]


def only_phantom(store: Path, copy: Path) -> Path:
    shutil.copytree(store / "phantom", copy / "phantom")
    return copy


def test_p_0_without_expert_masks_runs_with_fixed_thresholds_and_the_last_checkpoint(
    tiny_store: Path, tmp_path: Path, job: Job
) -> None:
    store = only_phantom(tiny_store, tmp_path / "store")
    grid = ("sweep.p=[0]", "sweep.init=[random]", "sweep.trials=1")
    no_masks = ("data.expert_csv=null", "data.expert_masks=null")
    fixed = ("pseudo_masks.thresholds=otsu", "segmentation.thresholds=fixed", "segmentation.checkpoint=last")
    done = job("sweep.py", str(TINY), f"store.root={store}", *grid, *no_masks, *fixed)
    assert done.returncode == 0, done.stdout + done.stderr
    (segmentation,) = records(store, "segmentation")
    assert {c["source"] for c in segmentation.metrics["thresholds"].values()} == {"fixed"}
    assert segmentation.metrics["expert_ids"] == 0
    assert "last" in records(store, "classifier")[0].metrics["selected"]


@pytest.mark.slow
def test_p_1_without_weak_images_needs_no_classifier(tiny_store: Path, tmp_path: Path, job: Job) -> None:
    store = only_phantom(tiny_store, tmp_path / "store")
    grid = ("sweep.p=[1]", "sweep.init=[random]", "sweep.trials=1")
    done = job("sweep.py", str(TINY), f"store.root={store}", *grid, "data.weak_csv=null")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (store / "classifier").exists()
    assert records(store, "segmentation")[0].metrics["weak_ids"] == 0


def test_real_x_rays_run_through_to_their_report(real_data: Path, tmp_path: Path, job: Job) -> None:
    store = tmp_path / "store"
    data = [
        f"data.root={real_data}",
        "data.weak_csv=CheXpert-mini/train.csv",
        "data.expert_csv=CheXpert-mini/valid.csv",
        "data.expert_masks=gt_segmentations.json",
        "data.test_csv=null",
        "data.test_masks=null",
        "data.benchmark_masks=null",
        "data.num_validation=10",
        "data.num_test=12",
        "data.licence=CC BY-NC-SA and others, see the data's README",
    ]
    classifiers = [
        f"{section}.{value}"
        for section in ("classifier", "encoder_classifier")
        for value in ("train_splits=[weak, expert_train]", "validation_splits=[validation]", "blanks=ignore")
    ]
    others = ["pseudo_masks.gate=probability", "sweep.trials=1"]
    done = job("sweep.py", str(TINY), f"store.root={store}", *data, *classifiers, *others)
    assert done.returncode == 0, done.stdout + done.stderr
    manifests = {r.config["split"]: r for r in records(store, "manifest")}
    assert manifests["weak"].rows == 121
    assert sum(manifests[s].rows for s in ("expert_train", "validation", "test")) == 44
    assert abs(manifests["validation"].rows - 10) <= 2
    assert abs(manifests["test"].rows - 12) <= 2
    assert sum(r.rejects for r in records(store, "images")) == 0
    page = (store / "report" / "tiny" / "index.html").read_text()
    assert "CC BY-NC-SA" in page
    assert "1 of 1 points" in page
