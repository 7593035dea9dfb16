"""Label policies, the masked loss and probabilities."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chexseg_ray.pseudo.classifier import IGNORED, masked_loss, probabilities, training_targets

LABELS = np.array([[1.0, 0.0, -1.0, np.nan]])


@pytest.mark.parametrize(
    ("uncertainty", "blanks", "expected"),
    [
        ("ignore", "zeros", [1, 0, IGNORED, 0]),
        ("zeros", "zeros", [1, 0, 0, 0]),
        ("ones", "zeros", [1, 0, 1, 0]),
        ("threeclass", "zeros", [1, 0, -1, 0]),
        ("ignore", "ignore", [1, 0, IGNORED, IGNORED]),
    ],
)
def test_a_policy_says_what_becomes_of_uncertain_and_blank(uncertainty: str, blanks: str, expected: list[int]) -> None:
    assert training_targets(LABELS, uncertainty, blanks)[0].tolist() == expected


def test_ignored_targets_add_nothing_to_loss_or_gradient() -> None:
    logits = torch.randn(4, 4, requires_grad=True)
    targets = torch.tensor(training_targets(np.repeat(LABELS, 4, axis=0), "ignore", "ignore"))
    loss = masked_loss(logits, targets)
    loss.backward()
    expected = F.binary_cross_entropy_with_logits(logits[:, :2], targets[:, :2].float())
    assert torch.allclose(loss, expected)
    assert (logits.grad[:, 2:] == 0).all()
    assert float(masked_loss(logits.detach(), torch.full_like(targets, IGNORED))) == 0


def test_threeclass_is_a_softmax_over_negative_and_positive() -> None:
    logits = torch.randn(2, 6)
    three = logits.view(2, 2, 3)
    assert torch.allclose(probabilities(logits, 2), three[..., 1:].softmax(-1)[..., 1])
    targets = torch.tensor([[-1, 1], [0, IGNORED]])
    expected = F.cross_entropy(torch.stack([three[0, 0], three[0, 1], three[1, 0]]), torch.tensor([0, 2, 1]))
    assert torch.allclose(masked_loss(logits, targets), expected)
