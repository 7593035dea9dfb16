"""Where ImageNet weights are looked for, and that nothing is ever fetched unasked."""

import hashlib
import socket
from pathlib import Path

import pytest
import torch

from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.stages.encoder import imagenet_file, imagenet_statistics


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    torch.hub.set_dir(tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every connection is an error, and is written down."""
    tried: list[str] = []

    def refuse(*arguments: object, **_: object) -> None:
        tried.append(str(arguments))
        raise OSError("the network is closed")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


@pytest.mark.parametrize(
    ("architecture", "places"),
    [
        ("resnet18", ("download.pytorch.org/models/resnet18-f37072fd.pth", "checkpoints/resnet18-f37072fd.pth")),
        ("resnet50", ("download.pytorch.org/models/resnet50-0676ba61.pth", "checkpoints/resnet50-0676ba61.pth")),
        (
            "densenet121",
            ("download.pytorch.org/models/densenet121-a639ec97.pth", "checkpoints/densenet121-a639ec97.pth"),
        ),
        ("efficientnet-b0", ("huggingface.co/smp-hub/efficientnet-b0.imagenet/resolve/", "the cache ")),
        ("tu-convnext_tiny", ("huggingface.co/timm/convnext_tiny", "the cache ")),
    ],
)
def test_without_a_file_the_exact_one_to_provide_is_named_and_no_socket_is_opened(
    architecture: str, places: tuple[str, ...], no_sockets: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        imagenet_file(architecture, download=False)
    for place in places:
        assert place in str(caught.value)
    assert f"pretraining.imagenet_files={{{architecture}: FILE}}" in str(caught.value)
    assert "pretraining.download=true" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert no_sockets == []


def test_a_hub_that_is_asked_for_and_cannot_be_reached_is_a_transient_fault(
    no_sockets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the hub's own retries
    with pytest.raises(TransientError, match=r"smp-hub/resnet18.imagenet.* cannot be fetched"):
        imagenet_file("resnet18", download=True)
    assert no_sockets, "it was asked for, so it was tried"


def test_torchvisions_own_file_is_taken_when_its_name_is_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    wrong = folder / "resnet18-f37072fd.pth"
    wrong.write_bytes(b"other bytes")
    with pytest.raises(InputError, match="not f37072fd: fetch the file again"):
        imagenet_file("resnet18", download=False)
    right = folder / f"resnet18-{hashlib.sha256(b'other bytes').hexdigest()[:8]}.pth"
    wrong.rename(right)
    monkeypatch.setattr("chexseg_ray.stages.encoder._torchvision_file", lambda name: ("url", right))
    assert imagenet_file("resnet18", download=False) == right


def test_smps_file_is_found_in_hugging_faces_cache(tmp_path: Path, no_sockets: list[str]) -> None:
    from segmentation_models_pytorch.encoders import encoders

    settings = encoders["resnet18"]["pretrained_settings"]["imagenet"]
    folder = tmp_path / "hf" / f"models--{settings['repo_id'].replace('/', '--')}" / "snapshots" / settings["revision"]
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert imagenet_file("resnet18", download=False) == folder / "model.safetensors"
    assert no_sockets == []


def test_the_statistics_of_imagenet_weights_are_their_encoders_own() -> None:
    named = {
        "resnet18": "imagenet",
        "xception": "inception",
        "tu-resnet18": "imagenet",
        "tu-tf_efficientnetv2_s": "inception",
    }
    assert {name: imagenet_statistics(name) for name in named} == named
    with pytest.raises(ValueError, match="none of imagenet, inception, chexpert"):
        imagenet_statistics("dpn68")
