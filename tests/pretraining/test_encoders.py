"""A classifier's weights as a segmentation encoder's."""

import pytest
import torch

from chexseg_ray.pretraining.encoders import encoder_state, load_encoder
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
