"""Does MoCo learn what a random encoder does not know? A linear probe on frozen features of phantoms, paired by seed.

    python benchmarks/moco_probe.py [SEEDS, default 5] [UPDATES, default 300] [SIZE, default 64]

Measures, for each seed, how well pathologies can be predicted from a frozen ResNet18 on phantoms that are drawn for
this seed. On one side the encoder is random, with BatchNorm statistics set on train.csv's images; on the other side
the same encoder was then trained by MoCo v2 on these images without their labels. The probe is a logistic regression
for each pathology on the 512 mean features, standardised. It is fitted on some 285 labelled phantoms (the strength of
its L2 penalty is chosen on a quarter of them) and tested on as many others. Prints the machine; MoCo's loss and the
share of images that it found again, every 100 updates; each seed's mean AUROC over pathologies on both sides; then
the means over seeds and the paired difference, with Student's t intervals.
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

from chexseg_ray.data.images import content_box, letterbox
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.data.phantom import PhantomImage, plan_phantom, render
from chexseg_ray.engine.replicas import Replica
from chexseg_ray.engine.shards import Sample
from chexseg_ray.evaluation.auroc import auroc
from chexseg_ray.evaluation.intervals import t_interval
from chexseg_ray.pretraining.moco import MocoSettings, build_moco, draw_batch, moco_update

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
LEARNING_RATE, BATCH_SIZE, NORMALISATION = 1e-4, 32, "chexpert"


def settings_of(seed: int, size: int) -> MocoSettings:
    """Return MoCo-CXR's settings, but with a short queue."""
    return MocoSettings(
        architecture="resnet18",
        normalisation=NORMALISATION,
        queue_size=256,
        momentum=0.999,
        temperature=0.2,
        dimensions=128,
        rotation_degrees=10.0,
        min_crop=1.0,
        num_replicas=1,
        seed=seed,
        size=size,
    )


def draw(images: Sequence[PhantomImage], size: int) -> tuple[list[Sample], npt.NDArray[np.float64]]:
    """Render images and return letterboxed samples, and the labels float64 [N, K], 0 or 1."""
    samples, target = [], np.zeros(0, dtype=np.int8)
    for image in images:
        pixels = render(image, max(100, round(size * 1.25)))[0]
        height, width = pixels.shape
        samples.append(Sample(image.cxr_id, letterbox(pixels, size), target, (height, width), None))
    labels = [[name in image.findings for name in PATHOLOGIES] for image in images]
    return samples, np.array(labels, dtype=np.float64)


def features(encoder: torch.nn.Module, samples: Sequence[Sample]) -> npt.NDArray[np.float64]:
    """Return the last features' means over each image, float64 [N, C]; in train mode BatchNorm's statistics move."""
    out = []
    with torch.no_grad():
        for start in range(0, len(samples), 64):
            pixels = torch.from_numpy(np.stack([sample.pixels for sample in samples[start : start + 64]]))
            out.append(encoder(network_input(pixels, NORMALISATION))[-1].mean(dim=(2, 3)))
    return torch.cat(out).double().numpy()


def probe(encoder: torch.nn.Module, train: tuple[list[Sample], Any], test: tuple[list[Sample], Any]) -> float:
    """Fit the probe and return its mean AUROC over pathologies on the test images.

    Args:
        encoder: frozen; put into eval mode.
        train: samples and labels that the probe is fitted on.
        test: samples and labels that it is tested on.
    """
    encoder.eval()
    scaler = StandardScaler().fit(features(encoder, train[0]))
    x, x_test = (scaler.transform(features(encoder, samples)) for samples in (train[0], test[0]))
    fitted, held_out = slice(len(x) // 4, None), slice(0, len(x) // 4)
    areas = []
    for k in range(len(PATHOLOGIES)):
        y = train[1][:, k]
        by_strength = []
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=500).fit(x[fitted], y[fitted])
            scores = model.decision_function(x[held_out])
            by_strength.append(auroc(scores[:, None], y[held_out, None])[0])
        best = STRENGTHS[int(np.nanargmax(by_strength))]
        scores = LogisticRegression(C=best, max_iter=500).fit(x, y).decision_function(x_test)
        areas.append(auroc(scores[:, None], test[1][:, k : k + 1])[0])
    return float(np.mean(areas))


def one_seed(seed: int, updates: int, size: int) -> tuple[float, float]:
    """Probe the random encoder, train it, and probe it again.

    Args:
        seed: of phantoms, weights and batches.
        updates: of MoCo.
        size: pixels of a side.

    Returns:
        The mean AUROC before and after the training.
    """
    plan = plan_phantom(1200, 260, 260, 2000 + seed)
    images: dict[str, list[PhantomImage]] = {"train": [], "valid": [], "test": []}
    for image in plan:
        images[image.split].append(image)
    unlabelled = draw(images["train"], size)[0]
    train, test = draw(images["valid"][:400], size), draw(images["test"][:400], size)
    settings = settings_of(seed, size)
    torch.manual_seed(seed)
    model = build_moco(settings).train()
    features(model.query.encoder, unlabelled * 3)
    before = probe(model.query.encoder, train, test)
    model.train()
    optimiser = torch.optim.Adam(model.query.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    rng = np.random.default_rng(seed)
    losses = []
    for update in range(updates):
        rows = rng.choice(len(unlabelled), BATCH_SIZE, replace=False)
        batch: list[Sample] = [unlabelled[i] for i in rows]
        pixels = torch.from_numpy(np.stack([sample.pixels for sample in batch]))
        boxes = [content_box(*sample.original, size) for sample in batch]
        drawn = draw_batch(pixels, boxes, settings, update, Replica(0, 1))
        losses.append(moco_update(model, optimiser, drawn, settings, lambda network, x, _: network(x), Replica(0, 1)))
        if (update + 1) % 100 == 0:
            loss, found = torch.stack(losses[-100:]).mean(dim=0).tolist()
            print(f"  update {update + 1}: loss {loss:.3f}, {found:.0%} found", flush=True)
    return before, probe(model.query.encoder, train, test)


def main() -> None:
    """Measure every seed, then print the means with their intervals."""
    arguments, defaults = sys.argv[1:], ["5", "300", "64"]
    seeds, updates, size = (int(word) for word in [*arguments, *defaults[len(arguments) :]])
    torch.set_num_threads(2)
    print(describe())
    results = []
    for seed in range(seeds):
        results.append(one_seed(seed, updates, size))
        print(f"seed {seed}: random {results[-1][0]:.3f}, MoCo {results[-1][1]:.3f}", flush=True)
    values = np.array(results)
    columns = {"random": values[:, 0], "MoCo": values[:, 1], "MoCo - random, paired": values[:, 1] - values[:, 0]}
    for name, column in columns.items():
        interval = t_interval(column.tolist(), 0.95)
        print(f"{name}: {interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})")


if __name__ == "__main__":
    main()
