"""The network of IRNet: strides, what is frozen, what its branches share (nothing), its learning rates."""

import pytest
import torch

from chexseg_ray.pseudo.affinity import irnet_losses, total_loss
from chexseg_ray.pseudo.irnet import IRNet, boundary_maps, polynomial_decay
from chexseg_ray.pseudo.pairs import PairLabels


def test_stages_lie_at_a_quarter_an_eighth_and_a_sixteenth() -> None:
    stages = IRNet(displacement=False).trunk(torch.zeros(1, 3, 64, 64))
    assert [tuple(s.shape[1:]) for s in stages] == [
        (64, 16, 16),
        (256, 16, 16),
        (512, 8, 8),
        (1024, 4, 4),
        (2048, 4, 4),
    ]


@pytest.mark.parametrize("size", [32, 96])
def test_outputs_lie_at_a_quarter(size: int) -> None:
    logits, displacement = IRNet(displacement=True)(torch.zeros(2, 3, size, size))
    assert logits.shape == (2, size // 4, size // 4)
    assert displacement is not None
    assert displacement.shape == (2, 2, size // 4, size // 4)
    assert IRNet(displacement=False)(torch.zeros(1, 3, 32, 32))[1] is None


def updated(displacement: bool) -> tuple[IRNet, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = IRNet(displacement).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 32, 32, generator=rng)
    labels = torch.randint(0, 2, (2, 2, 8, 8), generator=rng).to(torch.uint8)
    optimiser = torch.optim.SGD(model.parameter_groups(0.1), lr=0.1)
    logits, field = model(images)
    total_loss(irnet_losses(logits.sigmoid(), field, PairLabels(labels, 3)), "sum").backward()
    optimiser.step()
    return model, before


def test_the_trunk_and_its_statistics_are_frozen_and_the_branches_learn() -> None:
    model, before = updated(displacement=True)
    for name, tensor in model.state_dict().items():
        same = torch.equal(tensor, before[name])
        assert same == (name.startswith("trunk.") or name.endswith(".mean")), name


def test_the_displacement_branch_does_not_change_the_boundary_branch() -> None:
    with_branch, without = (updated(flag)[0].branches["boundary"].state_dict() for flag in (True, False))
    assert all(torch.equal(with_branch[name], tensor) for name, tensor in without.items())


def test_the_displacement_branch_learns_ten_times_as_fast() -> None:
    groups = list(IRNet(displacement=True).parameter_groups(0.1))
    assert [group["lr"] for group in groups] == [0.1, 1.0]
    assert [polynomial_decay(update, 4, 0.9) for update in (0, 4)] == [1.0, 0.0]
    assert polynomial_decay(1, 4, 0.9) == pytest.approx(0.75**0.9)


def test_the_mean_shift_is_taken_off_in_eval_mode_alone() -> None:
    model = IRNet(displacement=True)
    images = torch.rand(1, 3, 32, 32)
    field = model.train()(images)[1]
    model.branches["displacement"].mean.copy_(torch.tensor([1.0, -2.0]))
    assert torch.equal(model(images)[1], field)
    shifted = model.eval()(images)[1]
    assert torch.allclose(field - shifted, torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand_as(field), atol=1e-5)


def test_flip_averaging_makes_the_map_of_a_mirrored_image_the_mirrored_map() -> None:
    model = IRNet(displacement=False).eval()
    images = torch.rand(2, 3, 32, 32)
    plain, _ = boundary_maps(model, images, flip=True)
    mirrored, _ = boundary_maps(model, images.flip(-1), flip=True)
    assert torch.allclose(plain, mirrored.flip(-1), atol=1e-5)
    assert not torch.allclose(boundary_maps(model, images, flip=False)[0], plain)
    assert ((plain >= 0) & (plain <= 1)).all()
