"""MoCo: views, loss, queue and momentum, each against a plain version."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from chexseg_ray.data.images import ContentBox
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.pretraining.encoders import build_encoder
from chexseg_ray.pretraining.moco import MoCo, Projector, Views, contrastive_loss, view_inputs


def views(
    mirrored: bool = False, angle: float = 0.0, side: float = 1.0, place: tuple[float, float] = (0.5, 0.5)
) -> Views:
    return Views(np.array([mirrored]), np.array([angle]), np.array([side]), np.array([place]))


def matrices_of(view: Views, box: ContentBox, size: int) -> torch.Tensor:
    return torch.from_numpy(view.matrices([box], size)).float()


def cut(pixels: np.ndarray, box: ContentBox, view: Views) -> np.ndarray:
    """The view's pixels [S, S], 0 to 255."""
    inputs = view_inputs(torch.from_numpy(pixels[None]), matrices_of(view, box, len(pixels)), "chexpert")
    return (inputs[0, 0].numpy() * 0.085585 + 0.5020) * 255


@pytest.fixture
def wide(rng: np.random.Generator) -> tuple[np.ndarray, ContentBox]:
    """A smooth image of 40 x 64 pixels in the middle of 64 x 64."""
    out = np.zeros((64, 64), dtype=np.uint8)
    out[12:52] = np.asarray(
        Image.fromarray(rng.integers(0, 256, (10, 16), dtype=np.uint8)).resize((64, 40), Image.Resampling.BICUBIC)
    )
    return out, ContentBox(12, 0, 40, 64)


def test_a_view_without_any_change_of_a_square_image_is_the_image(rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
    inputs = view_inputs(
        torch.from_numpy(pixels[None]),
        matrices_of(views(), ContentBox(0, 0, 32, 32), 32),
        "imagenet",
    )
    assert torch.allclose(inputs, network_input(torch.from_numpy(pixels[None]), "imagenet"), atol=1e-4)


@pytest.mark.parametrize(("place", "left"), [(0.0, 0), (0.5, 12), (1.0, 24)])
def test_the_window_is_as_large_as_the_short_side_and_moves_along_the_long_one(
    place: float, left: int, wide: tuple
) -> None:
    pixels, box = wide
    expected = np.asarray(Image.fromarray(pixels[12:52, left : left + 40]).resize((64, 64), Image.Resampling.BILINEAR))
    found = cut(pixels, box, views(place=(0.5, place)))
    assert np.abs(found - expected)[2:-2, 2:-2].max() < 1.5


def test_the_content_is_mirrored_and_turned_about_its_centre(wide: tuple) -> None:
    pixels, box = wide
    plain = cut(pixels, box, views(place=(0.5, 0.25)))
    mirrored = cut(pixels[:, ::-1].copy(), box, views(mirrored=True, place=(0.5, 0.25)))
    assert np.abs(mirrored - plain).max() < 0.1, "the mirror image of the mirrored content, cut at the same place"
    half = cut(pixels, box, views(angle=180.0))
    assert np.abs(half - cut(pixels, box, views())[::-1, ::-1]).max() < 0.1
    quarter = cut(pixels, box, views(angle=90.0, side=0.5))
    assert np.abs(quarter - np.rot90(cut(pixels, box, views(side=0.5)), k=-1)).max() < 0.1, "clockwise"


def test_what_a_turn_brings_in_is_black(wide: tuple) -> None:
    pixels, box = wide
    white = np.zeros_like(pixels)
    white[box.rows, box.columns] = 255
    assert cut(white, box, views())[2:-2].min() > 254
    turned = cut(white, box, views(angle=10.0))
    assert turned[0].min() < 1
    assert turned[32].min() > 254


def test_draws_are_within_their_ranges_and_a_function_of_the_generator() -> None:
    drawn = Views.draw(np.random.default_rng(1), 1000, 10.0, 0.8)
    assert 0.4 < drawn.mirrored.mean() < 0.6
    assert (np.abs(drawn.angle) <= 10).all()
    assert np.abs(drawn.angle).max() > 9.5
    assert ((drawn.side >= 0.8) & (drawn.side <= 1)).all()
    assert ((drawn.place >= 0) & (drawn.place <= 1)).all()
    again = Views.draw(np.random.default_rng(1), 1000, 10.0, 0.8)
    assert np.array_equal(drawn.angle, again.angle)
    assert np.array_equal(drawn.of([3, 1]).place, drawn.place[[3, 1]])


def test_the_loss_is_info_nce_by_a_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys, queue = (
        F.normalize(torch.randn(n, 8, generator=generator, dtype=torch.float64), dim=1) for n in (5, 5, 12)
    )
    expected, found = 0.0, 0
    for q, k in zip(queries, keys, strict=True):
        positive, others = float(q @ k) / 0.2, [float(q @ other) / 0.2 for other in queue]
        expected += -positive + np.log(sum(np.exp(value) for value in [positive, *others]))
        found += positive > max(others)
    loss, accuracy = contrastive_loss(queries, keys, queue, 0.2)
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert int(accuracy) == found


def small() -> MoCo:
    torch.manual_seed(0)
    query, key = (Projector(build_encoder("resnet18"), 512, 16) for _ in range(2))
    return MoCo(query, key, 12, torch.Generator().manual_seed(1))


def test_both_encoders_begin_equal_and_the_key_encoder_follows_without_gradients() -> None:
    model = small()
    for key_tensor, other in zip(model.key.state_dict().values(), model.query.state_dict().values(), strict=True):
        assert torch.equal(key_tensor, other)
    assert not any(p.requires_grad for p in model.key.parameters())
    before = model.key.head[0].weight.clone()
    with torch.no_grad():
        model.query.head[0].weight += 1.0
    model.follow(0.9)
    assert torch.allclose(model.key.head[0].weight, 0.9 * before + 0.1 * model.query.head[0].weight)


def test_vectors_have_length_one_and_the_queue_keeps_the_newest_keys() -> None:
    model = small()
    with torch.no_grad():
        out = model.query.eval()(torch.rand(3, 3, 64, 64))
    assert torch.allclose(out.norm(dim=1), torch.ones(3))
    assert torch.allclose(model.queue.norm(dim=1), torch.ones(12))
    for update in range(5):  # 5 x 4 keys into 12 places
        model.enqueue(torch.full((4, 16), float(update)), update * 4 % 12 + torch.arange(4), torch.tensor(True))
    expected = [3.0] * 4 + [4.0] * 4 + [2.0] * 4
    assert [float(row[0]) for row in model.queue] == expected
    model.enqueue(torch.full((4, 16), 9.0), torch.arange(4), torch.tensor(False))
    assert [float(row[0]) for row in model.queue] == expected, "a loss that is not finite"
