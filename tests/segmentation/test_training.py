"""One update: learns, and refuses a loss that is no number."""

import numpy as np
import pytest
import torch

from chexseg_ray.segmentation.network import build_network
from chexseg_ray.segmentation.training import predict, segmentation_update, unpacked


@pytest.mark.parametrize("fused", [False, True])
def test_updates_lower_the_loss_and_a_nan_changes_no_weight(fused: bool) -> None:
    torch.manual_seed(0)
    model = build_network("deeplabv3plus", "resnet18", 2).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)
    pixels = torch.zeros(4, 64, 64, dtype=torch.uint8)
    pixels[:, :, 32:] = 200
    masks = torch.zeros(4, 2, 64, 64, dtype=torch.bool)
    masks[:, 0, :, 32:] = True
    losses = [float(segmentation_update(model, optimiser, pixels, masks, "imagenet", 1.0)) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.1
    scores = predict(model, pixels.numpy(), "imagenet", torch.device("cpu"))
    assert scores.shape == (4, 2, 64, 64)
    assert model.training
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    before = [p.clone() for p in model.parameters()]
    steps = [state["step"].clone() for state in optimiser.state.values()]
    assert segmentation_update(model, optimiser, pixels, masks, "imagenet", 1.0).isnan()
    assert steps == [state["step"] for state in optimiser.state.values()]
    assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("size", [8, 13])
def test_masks_are_unpacked_as_numpy_does(size: int, rng: np.random.Generator) -> None:
    masks = rng.random((2, 3, size, size)) > 0.5
    packed = np.packbits(masks.reshape(2, 3, -1), axis=-1)
    assert torch.equal(unpacked(torch.from_numpy(packed), size), torch.from_numpy(masks))
