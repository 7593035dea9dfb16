"""Time of an evaluation's counting at CheXpert's image sizes, against the same with whole arrays of every pathology.

    python benchmarks/evaluation.py [IMAGES, default 8]       1 minute on 2 cores

Measures phantoms of 2828 px with their expert masks, and scores of 320 px that a second reader's masks give. On one
side every pathology's score is resized and every mask is an array, as until November 2026; on the other count_rows
counts, with one thread and with two. Prints the machine, how many masks are empty, the seconds an image of each, their
ratio, and the time of the network's pass that comes before. All counts must be equal.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from machine import describe
from training_steps import segmentation_network

from chexseg_ray.data.images import letterbox, letterbox_mask, unletterbox
from chexseg_ray.data.masks import Rle, decode_rle, encode_rle
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.data.phantom import plan_phantom, render
from chexseg_ray.evaluation.iou import mask_counts
from chexseg_ray.segmentation.inference import Segmented, Segmenter
from chexseg_ray.segmentation.training import predict
from chexseg_ray.stages.counts import count_rows

SIZE, LONG_SIDE, THRESHOLD = 320, 2828, 0.5


class Image:
    """One test image.

    Args:
        number: of the phantom.
        image: what to draw.
        segmenter: makes masks of scores.
    """

    def __init__(self, number: int, image: Any, segmenter: Segmenter) -> None:
        grey, truth, second = render(image, LONG_SIDE)
        self.pixels = letterbox(grey, SIZE)
        rng = np.random.default_rng(number)
        found = np.stack([letterbox_mask(second[name], SIZE) for name in PATHOLOGIES])
        noise = rng.random(found.shape).astype(np.float32)
        self.scores = np.where(found, 0.6, 0.1).astype(np.float32) + 0.3 * noise
        self.truth = np.stack([letterbox_mask(truth[name], SIZE) for name in PATHOLOGIES])
        height, width = grey.shape
        rles = [encode_rle(truth[name]) for name in PATHOLOGIES]
        names = {"cxr_id": str(number), "patient_id": str(number)}
        self.original = {**names, "height": height, "width": width, "rle_original": rles}
        self.segmented: Callable[[], Segmented] = lambda: segmenter._apply_thresholds(self.scores, height, width)


def with_arrays(image: Image) -> list[list[int]]:
    """Count at the image's resolution with an array for every mask, int [K, 3]."""
    height, width = image.original["height"], image.original["width"]
    image.segmented()
    masks = np.empty((len(PATHOLOGIES), height, width), dtype=bool)
    for k in range(len(masks)):
        np.greater(unletterbox(image.scores[k : k + 1], height, width)[0], THRESHOLD, out=masks[k])
    expert = np.stack([decode_rle(Rle(height, width, counts)) for counts in image.original["rle_original"]])
    counts: list[list[int]] = mask_counts(masks, expert).tolist()
    return counts


def counted(image: Image, threads: ThreadPoolExecutor) -> list[list[int]]:
    """Count as an evaluation does; return the counts at the image's resolution, int [K, 3]."""
    found = image.segmented()
    rows = count_rows(image.original, PATHOLOGIES, found.model_masks, image.truth, found.mask, threads.map)
    return [[row[name] for name in ("intersection", "predicted", "truth")] for row in rows[len(PATHOLOGIES) :]]


def main() -> None:
    """Measure both sides and print the lines."""
    torch.set_num_threads(2)
    print(describe())
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    network, cpu = segmentation_network().eval(), torch.device("cpu")
    thresholds: npt.NDArray[np.float32] = np.full(len(PATHOLOGIES), THRESHOLD, np.float32)
    segmenter = Segmenter(network, tuple(PATHOLOGIES), thresholds, "chexpert", SIZE, cpu)
    plan = [image for image in plan_phantom(0, 0, number, 0) if image.split == "test"][:number]
    images = [Image(i, image, segmenter) for i, image in enumerate(plan)]
    empty = sum(not np.any(image.scores[k] > THRESHOLD) for image in images for k in range(len(PATHOLOGIES)))
    print(f"{number} images of {LONG_SIDE} px, {empty} of {number * len(PATHOLOGIES)} predicted masks are empty")
    wanted = [with_arrays(image) for image in images]
    start = time.perf_counter()
    for image in images:
        with_arrays(image)
    before = (time.perf_counter() - start) / number
    print(f"arrays of every mask: {before:.3f} s an image")
    for count in (1, 2):
        with ThreadPoolExecutor(count) as threads:
            start = time.perf_counter()
            found = [counted(image, threads) for image in images]
            seconds = (time.perf_counter() - start) / number
        assert found == wanted, "counts differ"
        print(f"count_rows, threads {count}: {seconds:.3f} s an image, {before / seconds:.1f} times as fast")
    pixels = np.stack([image.pixels for image in images])
    start = time.perf_counter()
    predict(network, pixels, "chexpert", cpu)
    print(f"the network's pass on 2 CPUs: {(time.perf_counter() - start) / number:.3f} s an image")


if __name__ == "__main__":
    main()
