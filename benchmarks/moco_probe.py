"""Does MoCo learn what a random encoder does not have? A linear probe on frozen features, phantoms, paired by seed.

    python benchmarks/moco_probe.py [seeds] [updates] [size]

For each seed: phantoms of its own; a ResNet18 trained by MoCo v2 on train.csv's images without their labels, against the same ResNet18 before
training, whose BatchNorm statistics are set on the same images. Probe: logistic regression on the 512 standardised mean features, for each
pathology, fitted on some 285 labelled phantoms (its L2 strength chosen on a quarter of them), tested on as many others; mean AUROC of
the pathologies.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from machine import describe
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from chexseg_ray.data.images import letterbox
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.data.phantom import PhantomImage, plan_phantom, render
from chexseg_ray.evaluation.auroc import auroc
from chexseg_ray.evaluation.intervals import t_interval
from chexseg_ray.stages.moco import build_moco, moco_update
from chexseg_ray.stages.replicas import Replica
from chexseg_ray.stages.shards import Batch, Sample

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
CONFIG: dict[str, Any] = {
    "architecture": "resnet18", "normalisation": "chexpert", "queue_size": 256, "momentum": 0.999, "temperature": 0.2, "dimensions": 128,
    "rotation_degrees": 10.0, "min_crop": 1.0, "batch_size": 32, "num_replicas": 1,
}  # fmt: skip
LEARNING_RATE = 1e-4


def draw(images: Sequence[PhantomImage], size: int) -> tuple[list[Sample], npt.NDArray[np.float64]]:
    """Letterboxed samples, and labels [N, K]."""
    samples, target = [], np.zeros(0, dtype=np.int8)
    for image in images:
        pixels = render(image, max(100, round(size * 1.25)))[0]
        samples.append(Sample(image.cxr_id, letterbox(pixels, size), target, pixels.shape, None))
    return samples, np.array([[name in image.findings for name in PATHOLOGIES] for image in images], dtype=np.float64)


def features(encoder: torch.nn.Module, samples: Sequence[Sample]) -> npt.NDArray[np.float64]:
    """Mean last features float64 [N, C]; in train mode it only moves the BatchNorm statistics."""
    out = []
    with torch.no_grad():
        for start in range(0, len(samples), 64):
            pixels = torch.from_numpy(np.stack([sample.pixels for sample in samples[start : start + 64]]))
            out.append(encoder(network_input(pixels, CONFIG["normalisation"]))[-1].mean(dim=(2, 3)))
    return torch.cat(out).double().numpy()


def probe(encoder: torch.nn.Module, train: tuple[list[Sample], Any], test: tuple[list[Sample], Any]) -> float:
    """Mean AUROC on the test images."""
    encoder.eval()
    scaler = StandardScaler().fit(features(encoder, train[0]))
    x, held = (scaler.transform(features(encoder, samples)) for samples in (train[0], test[0]))
    fit, own = slice(len(x) // 4, None), slice(0, len(x) // 4)
    areas = []
    for k in range(len(PATHOLOGIES)):
        y = train[1][:, k]
        tried = [LogisticRegression(C=c, max_iter=500).fit(x[fit], y[fit]).decision_function(x[own]) for c in STRENGTHS]
        best = STRENGTHS[int(np.nanargmax([auroc(t[:, None], y[own, None])[0] for t in tried]))]
        scores = LogisticRegression(C=best, max_iter=500).fit(x, y).decision_function(held)
        areas.append(auroc(scores[:, None], test[1][:, k : k + 1])[0])
    return float(np.mean(areas))


def one_seed(seed: int, updates: int, size: int) -> tuple[float, float]:
    """The probe of the random and of the trained encoder."""
    plan = plan_phantom(1200, 260, 260, 2000 + seed)
    unlabelled = draw([i for i in plan if i.split == "train"], size)[0]
    train, test = (draw([i for i in plan if i.split == split][:400], size) for split in ("valid", "test"))
    config = CONFIG | {"seed": seed, "size": size}
    torch.manual_seed(seed)
    model = build_moco(config).train()
    features(model.query.encoder, unlabelled * 3)
    before = probe(model.query.encoder, train, test)
    model.train()
    optimiser = torch.optim.Adam(model.query.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    rng = np.random.default_rng(seed)
    losses = []
    for update in range(updates):
        rows = rng.choice(len(unlabelled), config["batch_size"], replace=False)
        batch = Batch([unlabelled[i] for i in rows])
        losses.append(moco_update(model, optimiser, batch, config, update, Replica(0, 1), torch.device("cpu")))
        if (update + 1) % 100 == 0:
            loss, found = np.mean(losses[-100:], axis=0)
            print(f"  update {update + 1}: loss {loss:.3f}, {found:.0%} found", flush=True)
    return before, probe(model.query.encoder, train, test)


def main() -> None:
    """Every seed, then means with Student's t intervals."""
    seeds, updates, size = (int(v) for v in [*sys.argv[1:], *("5", "300", "64")[len(sys.argv) - 1 :]])
    torch.set_num_threads(2)
    print(describe())
    results = []
    for seed in range(seeds):
        results.append(one_seed(seed, updates, size))
        print(f"seed {seed}: random {results[-1][0]:.3f}, MoCo {results[-1][1]:.3f}", flush=True)
    values = np.array(results)
    for name, column in (("random", values[:, 0]), ("MoCo", values[:, 1]), ("MoCo - random, paired", values[:, 1] - values[:, 0])):
        interval = t_interval(column.tolist(), 0.95)
        print(f"{name}: {interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})")


if __name__ == "__main__":
    main()
