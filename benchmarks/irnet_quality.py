"""Quality of IRNet on phantoms: are boundary maps high on true borders, and do its masks beat those of the CAMs?

    python benchmarks/irnet_quality.py STORE NUM_SEEDS [section.field=value ...]

Measures two kinds of pseudo masks of the weak images of configs/demo.yaml (with the overrides), which the study's
steps build in the store STORE: those of Grad-CAM on one side, those of IRNet, made from the same CAMs, on the other.
Both are compared with the phantoms' truth, which no training sees, for the seeds 0, 1, ... of phantom, classifier and
IRNet. Steps that STORE has already are not built again. Prints the machine; for each seed the AUROC of the boundary
maps and the pooled IoU of both kinds, as a mean and for each pathology; then the means over seeds with Student's t
intervals, and the paired difference between the two kinds.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from machine import describe

from chexseg_ray.cluster.machine import cpus_here
from chexseg_ray.cluster.session import RaySession
from chexseg_ray.config.parse import load_config
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.data.images import content_box, letterbox_mask
from chexseg_ray.data.masks import Rle, decode_rle
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.data.phantom import plan_phantom, render
from chexseg_ray.engine.execution import make_execution
from chexseg_ray.engine.tables import binary_column
from chexseg_ray.evaluation.auroc import auroc
from chexseg_ray.evaluation.intervals import t_interval
from chexseg_ray.pseudo.irnet import STRIDE, boundary_maps
from chexseg_ray.stages.irnet import load_irnet
from chexseg_ray.store.step import Step
from chexseg_ray.store.store import Store
from chexseg_ray.study.sources import load_study
from chexseg_ray.sweep.build import build

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
Truth = dict[str, npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class SeedResult:
    """What is measured for one seed.

    Args:
        gradcam: float64 [K], pooled IoU of the CAMs' masks.
        irnet: float64 [K], pooled IoU of IRNet's masks.
        boundary_auroc: AUROC of the boundary maps on true borders.
    """

    gradcam: npt.NDArray[np.float64]
    irnet: npt.NDArray[np.float64]
    boundary_auroc: float


def main() -> None:
    """Build and compare seed by seed, then print the intervals over seeds."""
    root, seeds, overrides = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    print(describe())
    results = []
    for seed in range(seeds):
        settings = ["sweep.method=[gradcam, irnet]", f"store.root={root}", f"data.phantom.seed={seed}"]
        settings += [f"classifier.seed={seed}", f"irnet.seed={seed}"]
        result = one_seed(load_config(DEMO, [*settings, *overrides]))
        results.append(result)
        means = f"gradcam {result.gradcam.mean():.4f}, irnet {result.irnet.mean():.4f}"
        print(f"seed {seed}: boundary AUROC {result.boundary_auroc:.3f}, mIoU {means}")
        for method, iou in (("gradcam", result.gradcam), ("irnet", result.irnet)):
            values = [f"{name} {value:.3f}" for name, value in zip(PATHOLOGIES, iou, strict=True)]
            print(f"  {method}: {', '.join(values)}", flush=True)
    show("boundary AUROC", [r.boundary_auroc for r in results])
    show("mIoU gradcam", [float(r.gradcam.mean()) for r in results])
    show("mIoU irnet", [float(r.irnet.mean()) for r in results])
    show("mIoU irnet - gradcam", [float(r.irnet.mean() - r.gradcam.mean()) for r in results])
    for k, name in enumerate(PATHOLOGIES):
        show(f"  {name}: irnet - gradcam", [float(r.irnet[k] - r.gradcam[k]) for r in results])


def show(label: str, values: list[float]) -> None:
    """Print a mean with its 95 % t interval over seeds."""
    interval = t_interval(values, 0.95)
    print(f"{label}: {interval.mean:.4f} ({interval.low:.4f} to {interval.high:.4f}; t over {interval.n} seeds)")


def one_seed(config: StudyConfig) -> SeedResult:
    """Build what is missing of one seed's masks, and compare them with the truth."""
    store = Store.open(config.store.root)
    study, source = load_study(config)
    session = RaySession(dashboard=False, num_cpus=cpus_here())
    execution = make_execution(config, source, session.start)
    steps = {step.config["method"]: step for step in study.upstream() if step.name == "pseudo_masks"}
    try:
        for step in steps.values():
            build(step, store, execution)
    finally:
        session.stop()
    truth = true_masks(config)
    scores = {method: pooled_iou(store, step, truth, config.data.image_size) for method, step in steps.items()}
    return SeedResult(scores["gradcam"], scores["irnet"], boundary_auroc(store, steps["irnet"], truth, config))


def true_masks(config: StudyConfig) -> Truth:
    """Draw the phantoms again and return the true masks of every weak image, bool [K, S, S] by cxr_id."""
    assert config.data.phantom is not None
    phantom = config.data.phantom.model_dump()
    long_side = phantom.pop("long_side")
    truth = {}
    for image in plan_phantom(**phantom):
        if image.split == "train":
            masks = render(image, long_side)[1].values()
            truth[image.cxr_id] = np.stack([letterbox_mask(mask, config.data.image_size) for mask in masks])
    return truth


def pooled_iou(store: Store, step: Step, truth: Truth, size: int) -> npt.NDArray[np.float64]:
    """Return the IoU pooled over all weak images, float64 [K], of the masks as trainings use them: with the gate.

    Args:
        store: where the masks are.
        step: the pseudo masks.
        truth: true masks by cxr_id.
        size: S, pixels of a side.
    """
    record = store.find(step)
    assert record is not None
    counts = np.zeros((2, len(PATHOLOGIES)))
    for row in store.read_tables(record, "masks/").to_pylist():
        for k, run_lengths in enumerate(row["rle"]):
            mask, true = decode_rle(Rle(size, size, run_lengths)), truth[row["cxr_id"]][k]
            counts[:, k] += (mask & true).sum(), (mask | true).sum()
    iou: npt.NDArray[np.float64] = counts[0] / counts[1]
    return iou


def boundary_auroc(store: Store, step: Step, truth: Truth, config: StudyConfig) -> float:
    """Return the AUROC of the boundary maps: border cells against all other cells of the images' content.

    A cell is on a border when it holds both the inside and the outside of a finding.

    Args:
        store: where the trained IRNet and the images are.
        step: IRNet's pseudo masks.
        truth: true masks by cxr_id.
        config: the study's config.
    """
    propagation = step.inputs["cams"]
    irnet, images = store.find(propagation.inputs["irnet"]), store.find(propagation.inputs["images_weak"])
    assert irnet is not None
    assert images is not None
    model, facts = load_irnet(store, irnet)
    size = config.data.image_size
    grid = size // STRIDE
    scores, borders = [], []
    for part in images.paths("images/"):
        table = store.read_table(images, part)
        rows = table.select(["cxr_id", "height", "width"]).to_pylist()
        pixels = binary_column(table, "pixels", np.uint8, (size, size))
        for start in range(0, len(rows), 16):
            inputs = network_input(torch.tensor(pixels[start : start + 16]), facts["normalisation"])
            maps, _ = boundary_maps(model, inputs, config.irnet.flip_average)
            for row, boundary in zip(rows[start : start + 16], maps.numpy(), strict=True):
                cells = truth[row["cxr_id"]].reshape(-1, grid, STRIDE, grid, STRIDE)
                border = np.asarray((cells.any(axis=(2, 4)) & ~cells.all(axis=(2, 4))).any(axis=0))
                box = content_box(row["height"], row["width"], size).on_grid(size, grid)
                scores.append(boundary[box.rows, box.columns].ravel())
                borders.append(border[box.rows, box.columns].ravel())
    labels = np.concatenate(borders)[:, None].astype(np.float64)
    return float(auroc(np.concatenate(scores)[:, None], labels)[0])


if __name__ == "__main__":
    main()
