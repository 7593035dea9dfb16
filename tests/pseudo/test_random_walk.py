"""Propagation against the dense matrix, and the properties of a random walk."""

import math

import numpy as np
import pytest
import torch

from chexseg_ray.config.upstream import RANDOM_WALKS
from chexseg_ray.data.images import content_box
from chexseg_ray.pseudo.propagation import propagate_cams
from chexseg_ray.pseudo.random_walk import Transition, WalkSettings, chebyshev_series, propagate

PRESETS = {name: WalkSettings(**walk.model_dump()) for name, walk in RANDOM_WALKS.items()}


def on_path(a: tuple[int, int], b: tuple[int, int]) -> list[tuple[int, int]]:
    box = [
        (y, x) for y in range(min(a[0], b[0]), max(a[0], b[0]) + 1) for x in range(min(a[1], b[1]), max(a[1], b[1]) + 1)
    ]
    return [
        (y, x) for y, x in box if abs((y - a[0]) * (b[1] - a[1]) - (x - a[1]) * (b[0] - a[0])) / math.dist(a, b) < 1
    ]


def dense_transition(boundary: np.ndarray, radius: int, beta: float) -> np.ndarray:
    """T float64 [N, N] by a double loop: T = A^beta / column sums."""
    cells = list(np.ndindex(*boundary.shape))
    matrix = np.eye(len(cells))
    for i, a in enumerate(cells):
        for j, b in enumerate(cells[:i]):
            if math.dist(a, b) < radius:
                matrix[i, j] = matrix[j, i] = (1 - max(boundary[cell] for cell in on_path(a, b))) ** beta
    return matrix / matrix.sum(axis=0, keepdims=True)


@pytest.mark.parametrize(("preset", "tolerance"), [("chexseg", 1e-5), ("irn", 1e-3)])
def test_propagation_equals_the_dense_float64_matrix_power(
    preset: str, tolerance: float, rng: np.random.Generator
) -> None:
    settings = PRESETS[preset]
    boundary, maps = rng.random((2, 11, 13), dtype=np.float32), rng.random((2, 3, 11, 13), dtype=np.float32)
    found = propagate(torch.from_numpy(maps), torch.from_numpy(boundary), settings)
    boundary, maps = boundary.astype(np.float64), maps.astype(np.float64)
    for i in range(2):
        power = np.linalg.matrix_power(dense_transition(boundary[i], settings.radius, settings.beta), settings.steps)
        expected = ((maps[i] * (1 - boundary[i])).reshape(3, -1) @ power).reshape(3, 11, 13)
        error = np.abs(found[i].numpy() - expected) / expected
        assert error.max() < tolerance, "relative, at every cell"


@pytest.mark.parametrize("smooth", [0.02, 1.0])
def test_many_steps_as_a_series_equal_many_steps_one_by_one(smooth: float, rng: np.random.Generator) -> None:
    """Weak boundaries (eigenvalues near 1) and strong ones."""
    boundary = torch.from_numpy(smooth * rng.random((1, 12, 12)))
    maps = torch.from_numpy(rng.random((1, 2, 12, 12)))
    transition = Transition(boundary, 5, 10.0)
    one_by_one = maps
    for _ in range(256):
        one_by_one = transition.walk(one_by_one, 1)
    assert ((transition.walk(maps, 256) - one_by_one).abs() / one_by_one).max() < 3e-4


@pytest.mark.parametrize("preset", ["chexseg", "irn"])
def test_one_hot_cell_is_propagated_as_exactly(preset: str, rng: np.random.Generator) -> None:
    """The hardest map for a series: far cells get little, and that little must be right too."""
    settings = PRESETS[preset]
    boundary = (0.3 + 0.1 * rng.random((1, 24, 24), dtype=np.float32)).astype(np.float32)
    maps = np.zeros((1, 1, 24, 24), dtype=np.float32)
    maps[0, 0, 3, 20] = 1
    found = propagate(torch.from_numpy(maps), torch.from_numpy(boundary), settings)[0, 0].numpy().ravel()
    power = np.linalg.matrix_power(
        dense_transition(boundary[0].astype(np.float64), settings.radius, settings.beta), settings.steps
    )
    expected = (maps.astype(np.float64) * (1 - boundary.astype(np.float64))).ravel() @ power
    seen = expected > 1e-6 * expected.max()
    assert (np.abs(found - expected)[seen] / expected[seen]).max() < 1e-3
    assert np.abs(found - expected).max() < 1e-4 * expected.max()


def dense_maps(cams: np.ndarray, boundary: np.ndarray, rows: slice, settings: WalkSettings) -> np.ndarray:
    """Compute the maps [K, G, G] of propagate_cams by the dense matrix.

    The formula closes the padding, walks, stretches the content to [0, 1], and fills the padding.
    """
    closed, start = np.ones_like(boundary), np.zeros_like(cams)
    closed[rows], start[:, rows] = boundary[rows], cams[:, rows]
    power = np.linalg.matrix_power(dense_transition(closed, settings.radius, settings.beta), settings.steps)
    walked = ((start * (1 - closed)).reshape(len(cams), -1) @ power).reshape(cams.shape)[:, rows]
    low, high = walked.min((1, 2), keepdims=True), walked.max((1, 2), keepdims=True)
    stretched = (walked - low) / (high - low)
    return np.pad(stretched, ((0, 0), (rows.start, cams.shape[1] - rows.stop), (0, 0)), mode="edge")


@pytest.mark.parametrize("instance_wise", [False, True])
def test_the_whole_propagation_equals_the_dense_formula(instance_wise: bool, rng: np.random.Generator) -> None:
    """On a map of the grid's own size; instance-wise with one instance is the same map."""
    cams, boundary = rng.random((2, 12, 12)) ** 3, rng.random((12, 12))
    box, settings = content_box(32, 48, 48).on_grid(48, 12), WalkSettings(3, 5.0, 8)
    field = None
    if instance_wise:
        rows, columns = np.mgrid[:12, :12]
        field = torch.from_numpy(np.stack([6 - rows, 6 - columns]).astype(np.float32))[None]
    tensors = torch.from_numpy(cams).float()[None], torch.from_numpy(boundary).float()[None]
    found = propagate_cams(*tensors, field, [box], settings, 0.3)[0].numpy()
    assert np.abs(found - dense_maps(cams, boundary, box.rows, settings)).max() < 1e-5


def test_a_map_that_is_flat_after_the_walk_says_nothing() -> None:
    cams = torch.rand(1, 1, 8, 8)
    out = propagate_cams(
        cams, torch.zeros(1, 8, 8), None, [content_box(32, 32, 32).on_grid(32, 8)], PRESETS["irn"], 0.3
    )
    assert (out == 0).all()


def test_the_series_is_as_exact_as_it_says() -> None:
    x = np.linspace(-1, 1, 20001)
    for power in (2, 7, 8, 33, 256, 1024):
        series = chebyshev_series(power)
        assert np.abs(np.polynomial.chebyshev.chebval(x, series) - x**power).max() < 1.1e-7
    assert len(chebyshev_series(256)) - 1 <= 90
    assert len(chebyshev_series(8)) == 9, "few steps need no fewer applications"


@pytest.mark.parametrize("steps", [1, 8, 256])
def test_columns_sum_to_one_so_values_are_weighted_means_and_a_constant_stays(
    steps: int, rng: np.random.Generator
) -> None:
    boundary = torch.from_numpy(rng.random((3, 9, 10)))
    boundary[0, 2:5] = 1
    transition = Transition(boundary, 4, 7.0)
    constant = torch.full((3, 2, 9, 10), 0.7, dtype=torch.float64)
    assert torch.allclose(transition.walk(constant, steps), constant, rtol=2e-5)
    maps = torch.from_numpy(rng.random((3, 2, 9, 10)))
    walked = transition.walk(maps, steps)
    slack = 0 if steps == 1 else 2e-5
    assert (walked.amax((2, 3)) <= maps.amax((2, 3)) + slack).all()
    assert (walked.amin((2, 3)) >= maps.amin((2, 3)) - slack).all()


@pytest.mark.parametrize("preset", ["chexseg", "irn"])
def test_a_closed_wall_stops_the_flow(preset: str) -> None:
    """Thick as the walk reaches, so that no pair's path goes round it."""
    boundary = torch.zeros(1, 12, 20)
    boundary[:, :, 9:11] = 1
    maps = torch.zeros(1, 1, 12, 20)
    maps[..., :9] = 1
    walked = propagate(maps, boundary, PRESETS[preset])
    assert (walked[..., 11:] == 0).all()
    assert torch.allclose(walked[..., :9], torch.ones(1), atol=2e-5), "nothing is lost on the inner side"
    open_wall = propagate(maps, boundary * 0, PRESETS[preset])
    assert open_wall[..., 11:].max() > 0.01


def test_nothing_enters_or_leaves_the_padding_and_the_rim_is_not_darkened(rng: np.random.Generator) -> None:
    box = content_box(40, 64, 64).on_grid(64, 16)
    assert (box.top, box.height, box.left, box.width) == (3, 10, 0, 16)
    cams = torch.zeros(1, 2, 4, 4)
    cams[0, 0] = torch.from_numpy(rng.random((4, 4))).float()
    boundary = torch.from_numpy(rng.random((1, 16, 16))).float() * 0.5
    out = propagate_cams(cams, boundary, None, [box], WalkSettings(3, 5.0, 8), 0.3)
    assert float(out[0, 0].max()) == 1
    assert float(out[0, 0].min()) == 0
    assert (out[0, 1] == 0).all(), "a map of zeros stays one"
    assert torch.equal(out[0, 0, 0], out[0, 0, box.top])
    boundary[0, : box.top] = 0
    assert torch.equal(out, propagate_cams(cams, boundary, None, [box], WalkSettings(3, 5.0, 8), 0.3)), (
        "the padding's values do not matter"
    )


def test_images_of_a_batch_do_not_touch_each_other(rng: np.random.Generator) -> None:
    boundary, maps = torch.from_numpy(rng.random((3, 8, 8))).float(), torch.from_numpy(rng.random((3, 2, 8, 8))).float()
    together = propagate(maps, boundary, PRESETS["irn"])
    for i in range(3):
        assert torch.allclose(
            propagate(maps[i : i + 1], boundary[i : i + 1], PRESETS["irn"])[0], together[i], rtol=1e-5, atol=1e-6
        )
