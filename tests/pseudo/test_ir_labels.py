"""IR labels, and the crops that IRNet is trained on."""

import numpy as np
import pytest

from chexseg_ray.data.images import ContentBox, content_box
from chexseg_ray.pseudo.ir_augmentation import Crop
from chexseg_ray.pseudo.ir_labels import ir_labels

OPEN = np.ones(1, dtype=bool)


def test_labels_are_shares_of_the_maps_own_maximum() -> None:
    cam = np.array([[[8.0, 2.5, 2.4], [0.41, 0.4, 0.0], [2.41, 0.39, 8.0]]], dtype=np.float32)
    expected = [[[1, 1, 255], [255, 0, 0], [1, 0, 1]]]
    assert ir_labels(cam, OPEN, ContentBox(0, 0, 3, 3), 3, 0.30, 0.05).tolist() == expected


def test_the_padding_is_ignored_and_does_not_set_the_maximum() -> None:
    cam = np.array([[[9.0, 9.0, 9.0], [1.0, 0.1, 0.0], [9.0, 9.0, 9.0]]], dtype=np.float32)
    labels = ir_labels(cam, OPEN, ContentBox(1, 0, 1, 3), 3, 0.30, 0.05)
    assert labels.tolist() == [[[255] * 3, [1, 255, 0], [255] * 3]]


def test_zero_maps_and_closed_gates_have_no_foreground() -> None:
    cams = np.zeros((3, 4, 4), dtype=np.float16)
    cams[1:, 0, 0] = 1
    labels = ir_labels(cams, np.array([True, False, True]), ContentBox(0, 0, 8, 8), 8, 0.30, 0.05)
    assert (labels[:2] == 255).all()
    assert (labels[2] == 1).any()
    only_padding = ir_labels(cams[1:2], OPEN, ContentBox(4, 4, 4, 4), 8, 0.30, 0.05)
    assert (only_padding == 255).all()


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.5, 0.8), (1.3, 1.5), (0.5, 1.5)])
def test_pixels_and_labels_are_cut_alike(low: float, high: float, rng: np.random.Generator) -> None:
    """The image is its own CAM, so foreground labels lie on bright cells and background labels on dark ones."""
    size, grid = 64, 16
    box = content_box(48, 64, size)
    ramp = np.zeros((size, size), dtype=np.uint8)
    ramp[box.rows, box.columns] = np.where(np.arange(64) < 32, 200, 1)
    cams = ramp[None].astype(np.float32)
    seen = set()
    for _ in range(20):
        crop = Crop.draw(rng, grid, low, high, flip=True)
        pixels = crop.pixels(ramp)
        labels = crop.labels(cams, OPEN, box, size, 0.30, 0.05)[0]
        assert pixels.shape == (size, size)
        assert labels.shape == (grid, grid)
        middle = pixels.reshape(grid, 4, grid, 4).mean(axis=(1, 3))
        assert (middle[labels == 1] > 60).all()
        assert (middle[labels == 0] < 60).all()
        outside = pixels.reshape(grid, 4, grid, 4).max(axis=(1, 3)) == 0
        assert (labels[outside] == 255).all(), "the black part of a window has no label"
        seen.add(crop.mirror)
    assert seen == {True, False}


def test_without_rescaling_a_crop_is_the_image_or_its_mirror(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    for _ in range(10):
        crop = Crop.draw(rng, 8, 1.0, 1.0, flip=True)
        assert np.array_equal(crop.pixels(image), image[:, ::-1] if crop.mirror else image)
    assert np.array_equal(Crop.draw(rng, 8, 1.0, 1.0, flip=False).pixels(image), image)


def test_a_content_box_on_the_grid_holds_the_cells_whose_centre_is_in_it(rng: np.random.Generator) -> None:
    for _ in range(100):
        height, width = rng.integers(1, 400, 2)
        box = content_box(int(height), int(width), 64).on_grid(64, 16)
        pixels = content_box(int(height), int(width), 64)
        centres = np.arange(16) * 4 + 2.0
        rows = np.flatnonzero((centres >= pixels.top) & (centres < pixels.top + pixels.height))
        if len(rows):
            assert (box.top, box.height) == (rows[0], len(rows))
        else:
            assert box.height == 1
