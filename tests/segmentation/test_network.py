"""smp's networks by name, what cannot be built, and what the plan reckons that they cost."""

import pytest
import torch

from chexseg_ray.plan import cost
from chexseg_ray.pseudo.irnet import IRNet
from chexseg_ray.segmentation.network import build_network, check_network, count_network

DEEPLAB = {"output_stride": 16, "atrous_rates": (12, 24, 36)}


@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [
        ("unet", "resnet18"),
        ("fpn", "mobilenet_v2"),
        ("deeplabv3", "resnet18"),
        ("unet", "tu-resnet18"),
        ("unet", "mit_b0"),
        ("pspnet", "tu-resnet18"),
    ],
)
def test_any_architecture_and_encoder_of_smp_gives_a_map_a_pathology(architecture: str, encoder: str) -> None:
    model = build_network(architecture, encoder, 3).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 3, 64, 64)).shape == (2, 3, 64, 64)
    check_network(architecture, encoder, 64)


@pytest.mark.parametrize(
    ("architecture", "encoder", "size", "message"),
    [
        ("unet", "timm-regnetx_002", 64, "write tu-regnetx_002"),
        ("unett", "resnet18", 64, "smp has no architecture 'unett', only unet"),
        ("unet", "resnet81", 64, "'resnet81' is neither an encoder of smp"),
        ("dpt", "tu-vit_tiny_patch16_224", 64, "takes no images of 64 px"),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_name(
    architecture: str, encoder: str, size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_network(architecture, encoder, size)


@pytest.mark.parametrize("network", ["densenet121", "resnet18", "resnet50", "deeplabv3plus/resnet18"])
def test_the_plans_table_of_flops_and_weights_is_what_a_counter_counts(network: str) -> None:
    flops, weights = count_network(network, 320)
    assert cost._FORWARD[network] == pytest.approx(flops, rel=0.01)
    assert cost._WEIGHTS[network] == pytest.approx(weights, rel=0.01)


def test_irnet_costs_what_the_plan_says() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = IRNet(displacement=False).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 320, 320))
    assert cost._FORWARD["irnet"] == pytest.approx(counter.get_total_flops() / 1e9, rel=0.01)
    assert cost._WEIGHTS["irnet"] == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6, rel=0.01)


def test_a_network_that_the_table_lacks_is_counted() -> None:
    assert cost.network_flops("unet/resnet18", 160) == pytest.approx(
        count_network("unet/resnet18", 160)[0] * 1e9, rel=0.02
    )
