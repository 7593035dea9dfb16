"""Encoder weights out of every kind of file, and what is refused."""

import argparse
import json
from collections.abc import Mapping

import pytest
import torch
from pretraining.torch_files import saved
from torch import nn

from chexseg_ray.pretraining.encoders import build_encoder, encoder_channels, load_encoder, read_encoder, read_state
from chexseg_ray.pseudo.classifier import build_classifier, trunk_of

State = Mapping[str, torch.Tensor]


def record(state: State, **facts: object) -> bytes:
    from safetensors.torch import save

    return save(dict(state), {"model": json.dumps(facts)})


@pytest.fixture(scope="module")
def resnet18() -> dict[str, torch.Tensor]:
    """torchvision's names, with the head of 1000 classes."""
    from torchvision import models

    torch.manual_seed(3)
    return models.resnet18(weights=None).state_dict()


def trunk(state: State) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def prefixed(prefix: str, state: State) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def without_counters(state: State) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def test_every_form_of_file_gives_the_same_weights_with_the_statistics_that_go_with_it(resnet18: State) -> None:
    moco_head = {
        "fc.0.weight": torch.zeros(512, 512),
        "fc.0.bias": torch.zeros(512),
        "fc.2.weight": torch.zeros(128, 512),
    }
    moco_cxr = prefixed("module.encoder_q.", trunk(resnet18) | moco_head) | prefixed("module.encoder_k.", resnet18)
    moco_cxr |= {"module.queue": torch.zeros(128, 8), "module.queue_ptr": torch.zeros(1)}
    lightning = {"epoch": 2, "state_dict": prefixed("model.model.", resnet18), "hparams": argparse.Namespace(lr=1e-4)}
    network = prefixed("encoder.", trunk(resnet18)) | {
        "decoder.weight": torch.zeros(2),
        "segmentation_head.0.bias": torch.zeros(2),
    }
    forms = {
        "torchvision": (saved(dict(resnet18)), "torchvision, timm or smp", "imagenet", ["fc. (2)"]),
        "safetensors": (record(trunk(resnet18)), "torchvision, timm or smp", "imagenet", []),
        "lightning": (saved(lightning), "CheXpert's Lightning classifier", "imagenet", ["model.model.fc. (2)"]),
        "moco": (saved({"arch": "resnet18", "state_dict": moco_cxr}), "MoCo-CXR", "chexpert", None),
        "smp network": (
            saved(network),
            "a segmentation network of smp",
            "imagenet",
            ["decoder.weight", "segmentation_head.0. (1)"],
        ),
        "record": (
            record(resnet18, architecture="resnet18", normalisation="chexpert", pathologies=["a", "b"]),
            "chexseg_ray",
            "chexpert",
            ["fc. (2)"],
        ),
        "old file": (saved(without_counters(resnet18)), "torchvision, timm or smp", "imagenet", ["fc. (2)"]),
    }
    for name, (data, written_by, normalisation, left_out) in forms.items():
        encoder = build_encoder("resnet18")
        weights = read_encoder(data, encoder, "resnet18", ["a", "b"])
        assert (weights.provenance["format"], weights.normalisation) == (written_by, normalisation), name
        assert left_out is None or weights.provenance["left_out"] == left_out, name
        load_encoder(encoder, weights.state)
        for key, tensor in encoder.state_dict().items():
            assert torch.equal(tensor, resnet18[key]), (name, key)
        assert weights.provenance["loaded"] == len(weights.state) == (120 if name != "old file" else 100)
        assert len(weights.provenance["lacks"]) == (20 if name == "old file" else 0)
    moco = read_encoder(forms["moco"][0], build_encoder("resnet18"), "resnet18").provenance["left_out"]
    assert any(part.startswith("module.encoder_k.") for part in moco)
    assert any(part.startswith("module.queue") for part in moco)


@pytest.mark.parametrize(
    "architecture", ["densenet121", "resnet50", "tu-resnet18", "tu-convnext_tiny", "tu-efficientnet_b0"]
)
def test_other_encoders_read_torchvisions_and_timms_files(architecture: str) -> None:
    import timm
    from torchvision import models

    whole: nn.Module
    whole = (
        timm.create_model(architecture[3:], pretrained=False)
        if architecture.startswith("tu-")
        else models.get_model(architecture, weights=None)
    )
    encoder = build_encoder(architecture)
    weights = read_encoder(saved(whole.state_dict()), encoder, architecture)
    assert weights.state.keys() == encoder.state_dict().keys()
    load_encoder(encoder, weights.state)
    again = read_encoder(
        record(encoder.state_dict(), architecture=architecture), build_encoder(architecture), architecture
    )
    assert all(torch.equal(again.state[name], tensor) for name, tensor in weights.state.items())


@pytest.mark.parametrize("architecture", ["resnet18", "tu-resnet18"])
def test_a_deeper_networks_file_is_refused(architecture: str) -> None:
    from torchvision import models

    with pytest.raises(ValueError, match=r"unexpected layer1\.2"):
        read_encoder(saved(models.resnet34(weights=None).state_dict()), build_encoder(architecture), architecture)


def test_torchvisions_old_densenet_file_spells_its_layers_otherwise() -> None:
    from torchvision import models

    state = models.densenet121(weights=None).state_dict()
    old = {name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor for name, tensor in state.items()}
    assert old.keys() != state.keys()
    weights = read_encoder(saved(old), build_encoder("densenet121"), "densenet121")
    assert all(torch.equal(weights.state[name], state[name]) for name in weights.state)


@pytest.mark.parametrize("architecture", ["resnet18", "densenet121", "resnet34"])
def test_a_classifiers_trunk_is_an_encoder(architecture: str) -> None:
    classifier = build_classifier(architecture, 4, "threeclass").eval()
    images = torch.rand(2, 3, 64, 64)
    assert classifier(images).shape == (2, 12)
    encoder = build_encoder(architecture).eval()
    facts = {"architecture": architecture, "normalisation": "imagenet", "pathologies": ["a"]}
    load_encoder(encoder, read_encoder(record(classifier.state_dict(), **facts), encoder, architecture).state)
    trunk = trunk_of(classifier).state_dict()
    assert all(torch.equal(trunk[name], tensor) for name, tensor in encoder.state_dict().items())
    with torch.no_grad():
        assert encoder(images)[-1].shape[1] == encoder_channels(architecture)


def test_what_does_not_fit_is_refused_with_the_keys(resnet18: State) -> None:
    good = trunk(resnet18)
    for bad, message in (
        ({k: v for k, v in good.items() if k != "conv1.weight"}, "missing conv1.weight"),
        (good | {"extra": torch.zeros(1)}, "unexpected extra"),
        (good | {"conv1.weight": torch.zeros(1)}, "conv1.weight has shape"),
        (good | {"bn1.weight": torch.full((64,), float("nan"))}, "bn1.weight is not finite"),
        (prefixed("net.", good), "none of the encoder's 120 names"),
        (
            prefixed("module.encoder_q.", good) | {"module.encoder_q.layer5.weight": torch.zeros(1)},
            "unexpected module.encoder_q.layer5",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            read_encoder(saved(dict(bad)), build_encoder("resnet18"), "resnet18")


def test_a_record_of_another_network_or_another_order_of_pathologies_is_refused(resnet18: State) -> None:
    def read(**facts: object) -> None:
        read_encoder(record(resnet18, **facts), build_encoder("resnet18"), "resnet18", ["Edema", "Atelectasis"])

    with pytest.raises(ValueError, match="it is a resnet34's, not a resnet18's"):
        read(architecture="resnet34")
    with pytest.raises(ValueError, match="another order"):
        read(architecture="resnet18", pathologies=["Atelectasis", "Edema"])
    with pytest.raises(ValueError, match="normalised as 'mine'"):
        read(architecture="resnet18", normalisation="mine")
    read(architecture="resnet18", pathologies=["Edema", "Atelectasis"])
    read(architecture="deeplabv3plus", encoder="resnet18", pathologies=["Lung Lesion"])


def test_statistics_that_a_file_does_not_name_can_be_named(resnet18: State) -> None:
    def read(data: bytes) -> str:
        return read_encoder(data, build_encoder("resnet18"), "resnet18", normalisation="chexpert").normalisation

    assert read(saved(dict(resnet18))) == "chexpert"
    told = record(resnet18, architecture="resnet18", normalisation="imagenet")
    assert read(told) == "imagenet", "the file's word counts"


def test_an_encoder_that_nobody_knows_is_named() -> None:
    with pytest.raises(ValueError, match="resnet1O1"):
        build_encoder("resnet1O1")


def test_a_file_of_weights_is_read_whatever_wrote_it(resnet18: State) -> None:
    from safetensors.torch import save

    state = trunk(resnet18)
    forms = {"safetensors": save(state), "plain": saved(state), "nested": saved({"epoch": 3, "state_dict": state})}
    for name, data in forms.items():
        found = read_state(data)
        assert found.keys() == state.keys(), name
        assert all(torch.equal(found[key], tensor) for key, tensor in state.items()), name


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not weights",
        b"\x80\x02K\x01.",
        b'\x08\0\0\0\0\0\0\0{"a": 1',
        saved([torch.zeros(1)]),
        saved({}),
        saved({"state_dict": {"epoch": 1}}),
    ],
)
def test_what_is_no_file_of_weights_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"no weights can be read|no state dict"):
        read_state(data)


class Executed:
    """What a pickle of foreign code would do."""

    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("code from a file was executed",))


def test_code_in_a_file_is_not_executed_and_the_remedy_is_named() -> None:
    with pytest.raises(ValueError, match=r"no weights can be read .*save only its state_dict"):
        read_state(saved({"conv1.weight": Executed()}))
