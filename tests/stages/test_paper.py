"""configs/paper.yaml from beginning to end: all 40 settings and 120 trainings, at tiny sizes, through the same code."""

import csv
from pathlib import Path

import pytest
import torch
from studies import REPOSITORY, Job

PAPER = REPOSITORY / "configs" / "paper.yaml"
CPU = "num_cpus: 1, num_gpus: 0"
SMALL = [
    "data.root=null",
    "data.image_size=64",
    "data.num_validation=6",
    "data.phantom={num_train_patients: 40, num_expert_images: 16, num_test_images: 6, long_side: 80, seed: 0}",
    *(
        f"{section}.{value}"
        for section in ("classifier", "encoder_classifier")
        for value in ("batch_size=4", "num_updates=4", "validate_every=2")
    ),
    "moco.batch_size=4",
    "moco.queue_size=16",
    "moco.num_updates=4",
    "moco.milestones=[2, 3]",
    "cams.batch_size=8",
    "irnet.batch_size=4",
    "irnet.num_updates=2",
    "irnet.radius=4",
    "segmentation.batch_size=4",
    "segmentation.num_validations=1",
    "segmentation.learning_rate={4: 1e-3, 8: 1e-3, 16: 1e-4}",
    "segmentation.num_updates={4: 2, 8: 3, 16: 4}",
    "sweep.weak_n=[4]",
    "sweep.also=[{method: [gradcam], p: [1.0], init: [random, imagenet, moco, chexpert]}, "
    "{p: [0.0], init: [random, imagenet, moco, chexpert], weak_n: [4, 8, 16]}]",
    *(f"compute.{stage}={{num_workers: 0, {CPU}, threads: 2}}" for stage in ("classifier", "moco", "irnet")),
    *(f"compute.{stage}={{{CPU}, min_actors: 2, max_actors: 2}}" for stage in ("cams", "propagation")),
    f"compute.segmentation={{num_workers: 0, {CPU}, threads: 1}}",
    "compute.prediction={}",
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_papers_40_settings_run_to_their_report(job: Job, tmp_path: Path) -> None:
    from torchvision import models

    files = []
    # These files have the right form, but random weights; the real weights come only from their hubs.
    for name in ("resnet18", "resnet50", "densenet121"):
        torch.manual_seed(1)
        torch.save(models.get_model(name, weights=None).state_dict(), tmp_path / f"{name}.pth")
        files.append(f"{name}: {tmp_path / name}.pth")
    overrides = [*SMALL, f"store.root={tmp_path / 'store'}", f"pretraining.imagenet_files={{{', '.join(files)}}}"]
    done = job("sweep.py", str(PAPER), *overrides, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "120 of 120 points" in done.stdout
    print(done.stdout[-6000:])
    with (tmp_path / "store" / "report" / "paper" / "results.csv").open() as stream:
        means = [
            r
            for r in csv.DictReader(stream)
            if r["trial"] == "all" and r["pathology"] == "mean" and r["aggregation"] == "pooled"
        ]
    rows = [r for r in means if r["interval"].startswith("trials,")]
    assert len(rows) == 40
    assert {row["n"] for row in rows} == {"3"}
    again = job("sweep.py", str(PAPER), *overrides)
    assert "nothing to build" in again.stdout
