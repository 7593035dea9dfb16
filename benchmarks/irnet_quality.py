"""IRNet on phantoms: are boundary maps high on true borders, and are IRNet's pseudo masks better than the CAM masks they came from?

    python benchmarks/irnet_quality.py STORE NUM_SEEDS [section.field=value ...]

Builds both pseudo masks of configs/demo.yaml (with the overrides) by the study's own steps, for phantom, classifier and IRNet seeds
0, 1, ...; compares the weak images' masks with the phantoms' truth, which training never sees. Prints each seed, then means with
Student's t intervals over seeds, and the paired difference. A store that was built goes on where it stopped.
"""

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from machine import describe

from chexseg_ray.artifacts import Step, Store
from chexseg_ray.build import build, load_study, make_execution
from chexseg_ray.config import StudyConfig, load_config
from chexseg_ray.data.images import content_box, letterbox_mask
from chexseg_ray.data.masks import Rle, decode_rle
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.data.phantom import plan_phantom, render
from chexseg_ray.evaluation.auroc import auroc
from chexseg_ray.evaluation.intervals import t_interval
from chexseg_ray.pseudo.irnet import STRIDE, boundary_maps
from chexseg_ray.stages.irnet import load_irnet
from chexseg_ray.stages.tables import binary_column
from chexseg_ray.sweep import RaySession

Truth = dict[str, npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class SeedResult:
    """Pooled IoU [K] of both methods, and the boundary maps' AUROC."""

    gradcam: npt.NDArray[np.float64]
    irnet: npt.NDArray[np.float64]
    boundary_auroc: float


def main() -> None:
    """Print a line a seed and the intervals."""
    root, seeds, overrides = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    print(describe())
    results = []
    for seed in range(seeds):
        own = [f"store.root={root}", f"data.phantom.seed={seed}", f"classifier.seed={seed}", f"irnet.seed={seed}"]
        config = load_config("configs/demo.yaml", ["sweep.method=[gradcam, irnet]", *own, *overrides])
        result = one_seed(config)
        results.append(result)
        print(f"seed {seed}: boundary AUROC {result.boundary_auroc:.3f}, mIoU gradcam {result.gradcam.mean():.4f}, irnet {result.irnet.mean():.4f}")
        for name in ("gradcam", "irnet"):
            print(f"  {name}: {', '.join(f'{p} {v:.3f}' for p, v in zip(PATHOLOGIES, getattr(result, name), strict=True))}", flush=True)
    show("boundary AUROC", [r.boundary_auroc for r in results])
    show("mIoU gradcam", [float(r.gradcam.mean()) for r in results])
    show("mIoU irnet", [float(r.irnet.mean()) for r in results])
    show("mIoU irnet - gradcam", [float(r.irnet.mean() - r.gradcam.mean()) for r in results])
    for k, name in enumerate(PATHOLOGIES):
        show(f"  {name}: irnet - gradcam", [float(r.irnet[k] - r.gradcam[k]) for r in results])


def show(label: str, values: list[float]) -> None:
    """A mean with its t interval over seeds."""
    interval = t_interval(values, 0.95)
    print(f"{label}: {interval.mean:.4f} ({interval.low:.4f} to {interval.high:.4f}; t over {interval.n} seeds)")


def one_seed(config: StudyConfig) -> SeedResult:
    """Build what is missing, then compare."""
    store = Store.open(config.store.root)
    study, source = load_study(config)
    session = RaySession(dashboard=False)
    execution = make_execution(config, source, session.start, store)
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
    """bool [K, S, S] of every weak image, drawn again."""
    phantom = config.data.phantom.model_dump()
    long_side = phantom.pop("long_side")
    weak = [image for image in plan_phantom(**phantom) if image.split == "train"]
    return {i.cxr_id: np.stack([letterbox_mask(m, config.data.image_size) for m in render(i, long_side)[1].values()]) for i in weak}


def pooled_iou(store: Store, step: Step, truth: Truth, size: int) -> npt.NDArray[np.float64]:
    """float64 [K] over all weak images: of the masks as they are used, gated by image labels."""
    record = store.find(step)
    assert record is not None
    counts = np.zeros((2, len(PATHOLOGIES)))
    for row in store.read_tables(record, "masks/").to_pylist():
        for k, counts_rle in enumerate(row["rle"]):
            mask, true = decode_rle(Rle(size, size, counts_rle)), truth[row["cxr_id"]][k]
            counts[:, k] += (mask & true).sum(), (mask | true).sum()
    return counts[0] / counts[1]


def boundary_auroc(store: Store, step: Step, truth: Truth, config: StudyConfig) -> float:
    """Cells that hold both a finding's inside and its outside against all other cells of the content."""
    import torch

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
        rows, pixels = table.select(["cxr_id", "height", "width"]).to_pylist(), binary_column(table, "pixels", np.uint8, (size, size))
        for start in range(0, len(rows), 16):
            inputs = network_input(torch.tensor(pixels[start : start + 16]), facts["normalisation"])
            maps, _ = boundary_maps(model, inputs, config.irnet.flip_average)
            for row, boundary in zip(rows[start : start + 16], maps.numpy(), strict=True):
                cells = truth[row["cxr_id"]].reshape(-1, grid, STRIDE, grid, STRIDE)
                border = (cells.any(axis=(2, 4)) & ~cells.all(axis=(2, 4))).any(axis=0)
                box = content_box(row["height"], row["width"], size).on_grid(size, grid)
                scores.append(boundary[box.rows, box.columns].ravel())
                borders.append(border[box.rows, box.columns].ravel())
    return float(auroc(np.concatenate(scores)[:, None], np.concatenate(borders)[:, None].astype(np.float64))[0])


if __name__ == "__main__":
    main()
