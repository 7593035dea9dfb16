"""Pairs, affinities and losses of IRNet against loops over all pairs of cells; gradients against finite differences."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from chexseg_ray.pseudo.affinity import (
    affinity,
    irnet_losses,
    kind_weights,
    reference_losses,
    successive_losses,
    total_loss,
)
from chexseg_ray.pseudo.grouped_pairs import grouped_losses
from chexseg_ray.pseudo.pairs import EPSILON, PairLabels, convolved_counts, directions, path

Cell = tuple[int, int]


def pairs(height: int, width: int, radius: int) -> Iterator[tuple[Cell, Cell]]:
    """Every unordered pair of cells closer than the radius, the upper (or left) one first."""
    cells = [(y, x) for y in range(height) for x in range(width)]
    for i, a in enumerate(cells):
        for b in cells[i + 1 :]:
            if math.dist(a, b) < radius:
                yield a, b


def on_path(a: Cell, b: Cell) -> list[Cell]:
    """Cells of the bounding box closer than 1 to the line through both ends."""
    length = math.dist(a, b)
    out = []
    for y in range(min(a[0], b[0]), max(a[0], b[0]) + 1):
        for x in range(min(a[1], b[1]), max(a[1], b[1]) + 1):
            if abs((y - a[0]) * (b[1] - a[1]) - (x - a[1]) * (b[0] - a[0])) / length < 1:
                out.append((y, x))
    return out


@pytest.mark.parametrize(("radius", "count", "cells"), [(3, 12, 56), (5, 34, 242), (10, 152, 2134)])
def test_directions_and_paths_are_as_many_as_the_reference_counts(radius: int, count: int, cells: int) -> None:
    assert len(directions(radius)) == count
    assert sum(len(path(direction)) for direction in directions(radius)) == cells


@pytest.mark.parametrize(("height", "width", "radius"), [(6, 7, 4), (5, 3, 5), (2, 9, 3)])
def test_affinities_equal_a_double_loop_over_all_pairs(
    height: int, width: int, radius: int, rng: np.random.Generator
) -> None:
    boundary = rng.random((height, width))
    expected = {(a, b): 1 - max(boundary[cell] for cell in on_path(a, b)) for a, b in pairs(height, width, radius)}
    found = {}
    for dy, dx in directions(radius):
        values = affinity(torch.from_numpy(boundary), (dy, dx)).numpy()
        for y, x in np.ndindex(*values.shape):
            a = (y, x + max(0, -dx))
            found[(a, (a[0] + dy, a[1] + dx))] = values[y, x]
    assert found.keys() == expected.keys(), "all pairs, each once"
    assert all(found[pair] == expected[pair] for pair in expected)


def brute_losses(boundary: np.ndarray, field: np.ndarray, labels: np.ndarray, radius: int) -> list[float]:
    """Eq. 6, 3 and 4 for labels [B, K, h, w], averaged over the pathologies with foreground."""
    batch, count, height, width = labels.shape
    out = []
    for k in range(count):
        if not (labels[:, k] == 1).any():
            continue
        terms: dict[str, list[float]] = {name: [] for name in ("fg", "bg", "unequal", "d_fg", "d_bg")}
        for i in range(batch):
            for a, b in pairs(height, width, radius):
                ends = sorted((int(labels[i, k][a]), int(labels[i, k][b])))
                if 255 in ends:
                    continue
                near = 1 - max(boundary[i][cell] for cell in on_path(a, b))
                moved = field[i][:, *a] - field[i][:, *b]
                if ends == [0, 1]:
                    terms["unequal"].append(-math.log(1 + EPSILON - near))
                elif ends == [1, 1]:
                    terms["fg"].append(-math.log(near + EPSILON))
                    terms["d_fg"].append(np.abs(moved - (np.array(b) - np.array(a))).sum())
                else:
                    terms["bg"].append(-math.log(near + EPSILON))
                    terms["d_bg"].append(np.abs(moved).sum())
        mean = {name: float(np.mean(values)) if values else 0.0 for name, values in terms.items()}
        out.append([mean["fg"] / 2 + mean["bg"] / 2 + mean["unequal"], mean["d_fg"], mean["d_bg"]])
    return [float(v) for v in np.mean(out, axis=0)] if out else [0.0, 0.0, 0.0]


def sample(
    rng: np.random.Generator, count: int, height: int = 5, width: int = 6
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = rng.choice([0, 1, 255], size=(2, count, height, width)).astype(np.uint8)
    labels[:, -1] = 255  # a pathology that no image has
    return rng.random((2, height, width)), rng.normal(size=(2, 2, height, width)), labels


@pytest.mark.parametrize("count", [2, 13])
def test_losses_equal_a_double_loop_over_all_pairs(count: int, rng: np.random.Generator) -> None:
    """13 pathologies: more than one table index holds."""
    boundary, field, labels = sample(rng, count)
    losses = irnet_losses(torch.from_numpy(boundary), torch.from_numpy(field), PairLabels(torch.from_numpy(labels), 4))
    found = [float(losses.boundary), float(losses.foreground), float(losses.background)]
    assert found == pytest.approx(brute_losses(boundary, field, labels, 4), rel=1e-12)
    assert float(total_loss(losses, "sum")) == pytest.approx(sum(found))
    assert float(total_loss(losses, "halves")) == pytest.approx(found[0] / 2 + found[1] / 4 + found[2] / 4)


def test_the_reference_form_of_the_equations_equals_the_fused_losses(rng: np.random.Generator) -> None:
    boundary, field, labels = (torch.from_numpy(array) for array in sample(rng, 3))
    losses = irnet_losses(boundary, field, PairLabels(labels, 4))
    reference = reference_losses(boundary, field, labels, 4)
    for name in ("boundary", "foreground", "background"):
        assert float(getattr(reference, name)) == pytest.approx(float(getattr(losses, name)), rel=1e-12), name
    nothing = reference_losses(boundary, field, torch.full_like(labels, 255), 4)
    assert (nothing.boundary, nothing.foreground, nothing.background) == (0, 0, 0), "no pathology has foreground"


def test_gradients_equal_finite_differences(rng: np.random.Generator) -> None:
    boundary, field, labels = (torch.from_numpy(array) for array in sample(rng, 3))
    pair_labels = PairLabels(labels, 4)

    def loss(b: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        losses = irnet_losses(b, d, pair_labels)
        return losses.boundary + 2 * losses.foreground + 3 * losses.background

    assert torch.autograd.gradcheck(loss, (boundary.requires_grad_(), field.requires_grad_()), eps=1e-7, atol=1e-5)


def test_counts_equal_a_double_loop_and_add_up_over_shares(rng: np.random.Generator) -> None:
    _, _, labels = sample(rng, 13)
    counts = PairLabels(torch.from_numpy(labels), 4).counts()
    for k in range(13):
        ends = [tuple(sorted((int(m[k][a]), int(m[k][b])))) for m in labels for a, b in pairs(5, 6, 4)]
        expected = [int((labels[:, k] == 1).sum()), ends.count((1, 1)), ends.count((0, 0)), ends.count((0, 1))]
        assert counts[k].tolist() == expected
    shares = [PairLabels(torch.from_numpy(labels[i : i + 1]), 4).counts() for i in range(2)]
    assert torch.equal(counts, shares[0] + shares[1])


def test_shares_of_a_batch_add_up_to_its_loss_and_gradient(rng: np.random.Generator) -> None:
    boundary, field, labels = (torch.from_numpy(array) for array in sample(rng, 3))
    whole = boundary.clone().requires_grad_()
    counts = PairLabels(labels, 4).counts()
    loss = irnet_losses(whole, field, PairLabels(labels, 4)).boundary
    loss.backward()
    parts = boundary.clone().requires_grad_()
    each = [
        irnet_losses(parts[i : i + 1], field[i : i + 1], PairLabels(labels[i : i + 1], 4), counts).boundary
        for i in range(2)
    ]
    torch.stack(each).sum().backward()
    assert float((each[0] + each[1]).detach()) == pytest.approx(float(loss.detach()), rel=1e-12)
    assert torch.allclose(parts.grad, whole.grad, rtol=1e-12, atol=0)


def test_labels_without_a_foreground_give_no_loss_and_no_gradient() -> None:
    labels = torch.full((1, 2, 4, 4), 255, dtype=torch.uint8)
    labels[0, 0] = 0
    boundary = torch.rand(1, 4, 4, dtype=torch.float64, requires_grad=True)
    loss = irnet_losses(boundary, None, PairLabels(labels, 3)).boundary
    loss.backward()
    assert float(loss.detach()) == 0
    assert not boundary.grad.any()


@pytest.mark.parametrize("levels", [0, 8])
@pytest.mark.parametrize(("count", "height", "width", "radius"), [(3, 14, 11, 5), (12, 9, 16, 4), (2, 3, 5, 6)])
def test_the_form_for_gpus_gives_the_losses_counts_and_slopes_of_the_form_for_cpus(
    count: int, height: int, width: int, radius: int, levels: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (3, count, height, width), generator=generator).to(torch.uint8)
    labels[labels == 2] = 255
    maps = torch.rand(height, width, 3, generator=generator)
    if levels:  # several cells of a path then have its maximum, and the first of them gets the slope
        maps = maps.mul(levels).round().div(levels)
    fields = torch.randn(height, width, 2, 3, generator=generator)
    pairs = PairLabels(labels, radius)
    counts = pairs.counts()
    assert torch.equal(convolved_counts(labels, radius), counts)
    weights = kind_weights(counts, maps)
    losses, slopes, field_slopes = grouped_losses(maps, fields, pairs, weights)
    wanted_losses, wanted_slopes, wanted_field_slopes = successive_losses(maps, fields, pairs, weights)
    torch.testing.assert_close(losses, wanted_losses, rtol=1e-6, atol=0)
    for found, wanted in zip([slopes, *field_slopes], [wanted_slopes, *wanted_field_slopes], strict=True):
        assert found.shape == wanted.shape
        assert float((found - wanted).norm()) <= 1e-5 * float(wanted.norm())
    alone = grouped_losses(maps, None, pairs, weights)
    assert torch.equal(alone[0][:1], losses[:1])
    assert torch.equal(alone[1], slopes)
    assert alone[2] == []
