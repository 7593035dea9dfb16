"""Two processes compute what one process computes, in every training that replicas may share.

The tests compare outputs, losses, gradients and running statistics.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from two_processes import Result, run_as_two

from chexseg_ray.data.images import content_box
from chexseg_ray.engine.replicas import Replica
from chexseg_ray.engine.shards import Batch, Sample
from chexseg_ray.pretraining.moco import MoCo, MocoSettings, Projector, draw_batch, moco_update
from chexseg_ray.pseudo.classifier import IGNORED, build_classifier, classifier_update
from chexseg_ray.segmentation.network import build_network
from chexseg_ray.segmentation.training import segmentation_update

SIZE, BATCH = 32, 8


def batch() -> Batch:
    rng = np.random.default_rng(0)
    targets = rng.choice([0, 1, -2], size=(BATCH, 3)).astype(np.int8)
    targets[:4, 0] = -2  # what one replica alone has
    samples = [
        Sample(f"x{i}", rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8), t, (30, 32), None)
        for i, t in enumerate(targets)
    ]
    return Batch(samples)


class Small(nn.Module):
    """An encoder with BatchNorm and dropout, in the form of smp's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3))

    def forward(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        return [self.layers(inputs)]


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.fc = Small(), nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.fc(self.encoder(inputs)[-1].mean(dim=(2, 3)))


def state_after(model: nn.Module, losses: Sequence[torch.Tensor], with_gradients: nn.Module) -> Result:
    gradients = {f"gradient {name}": p.grad for name, p in with_gradients.named_parameters() if p.grad is not None}
    assert gradients
    return {
        "losses": torch.cat([loss.reshape(-1) for loss in losses]).double(),
        **gradients,
        **{k: v.clone() for k, v in model.state_dict().items()},
    }


def one_classifier_update(replica: Replica) -> Result:
    torch.manual_seed(0)
    model = Pooled().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    share, targets = replica.share(BATCH), torch.from_numpy(batch().targets)
    pixels, count = torch.from_numpy(batch().pixels[share]), (targets != IGNORED).sum()

    def update(number: int) -> torch.Tensor:
        forward = partial(replica.forward, model, num_replicas=2, seed=(5, number))
        return classifier_update(model, optimiser, pixels, targets[share], count, "imagenet", forward, replica.sum_)

    return state_after(model, (update(0), update(1)), model)


def one_moco_update(replica: Replica) -> Result:
    torch.manual_seed(0)
    query, key = (Projector(Small(), 6, 4) for _ in range(2))
    model = MoCo(query, key, 16, torch.Generator().manual_seed(1)).train()
    optimiser = torch.optim.SGD(model.query.parameters(), lr=0.1)
    settings = MocoSettings(
        architecture="small",
        normalisation="chexpert",
        queue_size=16,
        momentum=0.9,
        temperature=0.2,
        dimensions=4,
        rotation_degrees=10.0,
        min_crop=0.8,
        num_replicas=2,
        seed=5,
        size=SIZE,
    )
    pixels = torch.from_numpy(batch().pixels)
    boxes = [content_box(*sample.original, SIZE) for sample in batch().samples]

    def update(number: int) -> torch.Tensor:
        drawn = draw_batch(pixels, boxes, settings, number, replica)

        def pass_(network: nn.Module, inputs: torch.Tensor, role: int) -> torch.Tensor:
            return replica.forward(network, inputs, 2, (5, number, role))

        return moco_update(model, optimiser, drawn, settings, pass_, replica)

    return state_after(model, [update(0), update(1)], model.query)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(6, 3, 1)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs)


def one_segmentation_update(replica: Replica) -> Result:
    torch.manual_seed(0)
    model = Dense().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    rng = np.random.default_rng(1)
    pixels, masks = torch.from_numpy(batch().pixels), torch.from_numpy(rng.random((BATCH, 3, SIZE, SIZE)) < 0.2)
    masks[:4, 1] = False
    rows = replica.share(BATCH)
    add_up = replica.sum_ if replica.count > 1 else None

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        return replica.forward(model, inputs, 2, [9])

    losses = [
        segmentation_update(model, optimiser, pixels[rows], masks[rows], "imagenet", 1.0, forward, add_up)
        for _ in range(2)
    ]
    return state_after(model, losses, model)


UPDATES: dict[str, Callable[[Replica], Result]] = {
    "classifier": one_classifier_update,
    "moco": one_moco_update,
    "segmentation": one_segmentation_update,
}


def all_updates(replica: Replica) -> dict[str, Result]:
    torch.set_default_dtype(torch.float64)
    return {name: update(replica) for name, update in UPDATES.items()}


@pytest.fixture
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_two_processes_train_what_one_process_trains_for_the_same_replicas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_float64: None
) -> None:
    found = run_as_two(all_updates, tmp_path, monkeypatch)
    for name, update in UPDATES.items():
        whole = update(Replica(0, 1))
        for rank in (0, 1):
            assert found[rank][name].keys() == whole.keys()
            for key, tensor in whole.items():
                assert torch.allclose(found[rank][name][key], tensor, rtol=1e-6, atol=1e-8), (name, rank, key)


def test_each_replica_has_its_own_statistics_and_their_mean_runs() -> None:
    model = nn.BatchNorm2d(4).train()
    inputs = torch.randn(6, 4, 5, 5)
    out = Replica(0, 1).forward(model, inputs, 3, [0])
    for part in range(3):
        rows = slice(2 * part, 2 * part + 2)
        assert torch.allclose(out[rows], nn.BatchNorm2d(4)(inputs[rows]), atol=1e-6)
    means = torch.stack([inputs[2 * p : 2 * p + 2].mean(dim=(0, 2, 3)) for p in range(3)])
    assert torch.allclose(model.running_mean, 0.1 * means.mean(dim=0), atol=1e-6)
    whole = nn.BatchNorm2d(4)(inputs)
    assert not torch.allclose(out, whole, atol=1e-3), (
        "the number of replicas changes the numbers, so it is part of a training's identity"
    )


def test_each_part_update_and_role_has_its_own_dropout() -> None:
    model, ones = nn.Dropout(0.5).train(), torch.ones(2, 200)
    parts = Replica(0, 1).forward(model, ones, 2, [5, 0])
    assert not torch.equal(parts[0], parts[1])
    seen = [
        Replica(0, 1).forward(model, ones[:1], 1, seed) for seed in ([5, 0], [5, 1], [5 + 256, 0], [5, 0, 1], [6, 0])
    ]
    assert len({tuple(mask[0].tolist()) for mask in seen}) == len(seen)


def test_one_replica_is_the_models_own_pass_bitwise() -> None:
    torch.manual_seed(0)
    one, other = Dense().train(), Dense().train()
    other.load_state_dict(one.state_dict())
    inputs = torch.rand(4, 3, 8, 8)
    out = Replica(0, 1).forward(one, inputs, 1, [7])
    torch.manual_seed(int(np.random.SeedSequence([7, 0]).generate_state(1)[0]))
    assert torch.equal(out, other(inputs))
    assert torch.equal(one.layers[1].running_var, other.layers[1].running_var)


def test_a_real_network_passes_in_parts_and_learns_from_all_of_them() -> None:
    model = build_network("deeplabv3plus", "resnet18", 2).train()
    Replica(0, 1).forward(model, torch.rand(4, 3, 32, 32), 2, [0]).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    classifier = build_classifier("resnet18", 2, "ignore").train()
    Replica(0, 1).forward(classifier, torch.rand(4, 3, 32, 32), 2, [0]).sum().backward()
    assert float(classifier.conv1.weight.grad.abs().sum()) > 0
