"""The names of encoders that are built: listed ones, for which nothing connects anywhere."""

import itertools
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from chexseg_ray.data.encoder_names import check_encoder_name
from chexseg_ray.pretraining.encoders import build_encoder
from chexseg_ray.pseudo.classifier import build_classifier
from chexseg_ray.segmentation.network import build_network, count_network
from chexseg_ray.stages.encoder import imagenet_file

HUB = "timm/resnet18.a1_in1k"
SOURCES = ["hf-hub", "hf_hub", "HF-HUB", "HF_HUB", "Hf_hUb", "hf-HUB", "local-dir", "LOCAL-DIR", "Local-Dir", "https"]
REFUSED = [
    *(f"tu-{source}:{HUB}" for source in SOURCES),
    *(f"{source}:{HUB}" for source in SOURCES),
    "tu-local-dir:..",
    "tu-../resnet18",
    "tu-timm/resnet18",
    "tu-",
    "tu-resnet1O1",
    "tu-RESNET18",
    "tu-resnet18.no_such_tag",
    "TU-resnet18",
    "Resnet18",
    "timm-hf_hub:x",
    "",
    "x" * 100_000,
]


def build_classifier_of(name: str) -> object:
    return build_classifier(name, 2, "ignore")


def build_network_of(name: str) -> object:
    return build_network("unet", name, 1)


def count_network_of(name: str) -> object:
    return count_network(f"unet/{name}", 32)


def imagenet_file_of(name: str) -> object:
    return imagenet_file(name, download=True)


BUILDERS = [
    check_encoder_name,
    build_encoder,
    build_classifier_of,
    build_network_of,
    count_network_of,
    imagenet_file_of,
]


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was tried: connections, look-ups of hosts, reads of a hub's cache and of configs in folders."""
    tried: list[str] = []

    def refuse(what: str) -> Callable[..., object]:
        def called(*_: object, **__: object) -> object:
            tried.append(what)
            raise OSError(what)

        return called

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse(name))
    for place in (
        "socket.getaddrinfo",
        "socket.create_connection",
        "huggingface_hub.hf_hub_download",
        "timm.models._factory.load_model_config_from_hf",
        "timm.models._factory.load_model_config_from_path",
    ):
        monkeypatch.setattr(place, refuse(place))
    return tried


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: name[:40])
def test_a_name_that_is_not_listed_is_refused_before_anything_is_looked_up(name: str, connections: list[str]) -> None:
    for build in BUILDERS:
        with pytest.raises(
            ValueError, match=r"is neither an encoder of smp nor|given up these names|no architecture"
        ) as caught:
            build(name)
        assert len(str(caught.value)) < 300
    assert connections == []


def test_listed_names_are_built_without_a_connection(connections: list[str]) -> None:
    for name in ("resnet18", "tu-resnet18", "tu-resnet18.a1_in1k"):
        check_encoder_name(name)
        build_encoder(name)
    assert connections == []


def test_no_name_that_smp_or_timm_lists_names_a_place() -> None:
    import timm
    from segmentation_models_pytorch.encoders import encoders

    listed = itertools.chain(encoders, timm.list_models(), timm.list_models(pretrained=True))
    assert not [name for name in listed if ":" in name or "/" in name]


def test_a_near_name_is_proposed() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'tu-resnet101'"):
        check_encoder_name("tu-resnet1O1")
