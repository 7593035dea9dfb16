"""Speed of Grad-CAM in closed form, against the network's bare forward pass and against pytorch-grad-cam.

    python benchmarks/cams.py [IMAGES, default 16] [THREADS, default 2]       2 minutes on 2 cores

Measures DenseNet121 with random weights on 320 px images, maps of ten pathologies. On one side are grad_cam and the
CAM actor's work around it (pixels to maps), on the other the forward pass alone, and pytorch-grad-cam, batched over
images, with one backward pass for each pathology. The sides take turns, and the best of three counts. Prints the
machine and one line a side: seconds an image, and the forward pass's share of it.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from machine import describe
from pytorch_grad_cam import GradCAM  # type: ignore[import-untyped]
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # type: ignore[import-untyped]
from training_steps import PATHOLOGIES, random_pixels

from chexseg_ray.data.normalisation import network_input
from chexseg_ray.pseudo.classifier import build_classifier
from chexseg_ray.pseudo.gradcam import grad_cam
from chexseg_ray.stages.cams import CamActor
from chexseg_ray.stages.cams import Settings as CamSettings

SIZE, ROUNDS = 320, 3


def main() -> None:
    """Measure all sides and print the lines."""
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 16
    torch.set_num_threads(int(sys.argv[2]) if len(sys.argv) > 2 else 2)
    print(describe())
    torch.manual_seed(0)
    model = build_classifier("densenet121", PATHOLOGIES, "ignore").eval()
    pixels = random_pixels(np.random.default_rng(0), images, SIZE)
    inputs = network_input(torch.from_numpy(pixels), "imagenet")
    actor = CamActor.__new__(CamActor)
    names = [str(k) for k in range(PATHOLOGIES)]
    actor._settings = CamSettings(
        variant="post_relu", fine_grid=False, batch_size=images, pathologies=names, splits=("weak",)
    )
    actor._facts, actor._device, actor._model = {"normalisation": "imagenet"}, torch.device("cpu"), model

    def forward() -> None:
        with torch.no_grad():
            model(inputs)

    def by_library() -> None:
        with GradCAM(model=model, target_layers=[model.features]) as cam:
            for k in range(PATHOLOGIES):
                cam(input_tensor=inputs, targets=[ClassifierOutputTarget(k)] * images)

    sides: dict[str, Callable[[], object]] = {
        "forward pass": forward,
        "grad_cam": lambda: grad_cam(model, inputs, PATHOLOGIES),
        "actor, pixels to maps": lambda: actor.map(pixels),
    }
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(ROUNDS + 1):  # the first round warms up
        for name, work in sides.items():
            start = time.perf_counter()
            work()
            best[name] = min(best[name], time.perf_counter() - start)
    start = time.perf_counter()
    by_library()
    best["pytorch-grad-cam"] = time.perf_counter() - start
    for name, seconds in best.items():
        share = best["forward pass"] / seconds
        print(f"{name}: {seconds / images:.4f} s an image; the forward pass is {share:.3f} of it")
    print(f"grad_cam is {best['pytorch-grad-cam'] / best['grad_cam']:.1f} times as fast as pytorch-grad-cam")


if __name__ == "__main__":
    main()
