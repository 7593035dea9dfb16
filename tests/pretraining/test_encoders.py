"""A classifier's weights as a segmentation encoder's."""

import io

import pytest
import torch

from chexseg_ray.pretraining.encoders import encoder_state, load_encoder, read_state
from chexseg_ray.pseudo.classifier import build_classifier
from chexseg_ray.segmentation.deeplab import build_deeplab


def test_a_resnet18_classifier_fills_the_encoder_exactly() -> None:
    classifier = build_classifier("resnet18", 4, "ignore")
    encoder = build_deeplab("resnet18", 4, 16, (12, 24, 36)).encoder
    load_encoder(encoder, encoder_state(classifier.state_dict()))
    own = encoder.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in encoder_state(classifier.state_dict()).items())


def test_what_does_not_fit_is_refused_with_the_keys() -> None:
    encoder = build_deeplab("resnet18", 4, 16, (12, 24, 36)).encoder
    good = encoder_state(build_classifier("resnet18", 4, "ignore").state_dict())
    for bad, message in (
        ({k: v for k, v in good.items() if k != "conv1.weight"}, "missing conv1.weight"),
        (good | {"extra": torch.zeros(1)}, "unexpected extra"),
        (good | {"conv1.weight": torch.zeros(1)}, "conv1.weight has shape"),
        (good | {"bn1.weight": torch.full_like(good["bn1.weight"], float("nan"))}, "bn1.weight is not finite"),
        (encoder_state(build_classifier("densenet121", 4, "ignore").state_dict()), "missing"),
    ):
        with pytest.raises(ValueError, match=message):
            load_encoder(encoder, bad)


def test_a_file_of_weights_is_read_whatever_wrote_it() -> None:
    from safetensors.torch import save

    state = encoder_state(build_classifier("resnet18", 4, "ignore").state_dict())
    forms = {"safetensors": save(state), "plain": saved(state), "nested": saved({"epoch": 3, "state_dict": state})}
    for name, data in forms.items():
        found = read_state(data)
        assert found.keys() == state.keys(), name
        assert all(torch.equal(found[key], tensor) for key, tensor in state.items()), name


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"not weights", b"\x80\x02K\x01.", b'\x08\0\0\0\0\0\0\0{"a": 1', saved([torch.zeros(1)]), saved({}), saved({"state_dict": {"epoch": 1}})],
)
def test_what_is_no_file_of_weights_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"no weights can be read|no state dict"):
        read_state(data)


class Executed:
    """What a pickle of foreign code would do."""

    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("code from a file was executed",))


def test_code_in_a_file_is_not_executed() -> None:
    with pytest.raises(ValueError, match="no weights can be read"):
        read_state(saved({"conv1.weight": Executed()}))


def test_num_batches_tracked_may_be_missing() -> None:
    encoder = build_deeplab("resnet18", 4, 16, (12, 24, 36)).encoder
    state = encoder_state(build_classifier("resnet18", 4, "ignore").state_dict())
    load_encoder(encoder, {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")})
    assert torch.equal(encoder.state_dict()["conv1.weight"], state["conv1.weight"])
