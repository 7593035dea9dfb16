"""Grad-CAM in closed form against captum and pytorch-grad-cam, which go through autograd."""

import numpy as np
import pytest
import torch
from torch import nn

from chexseg_ray.pseudo.classifier import build_classifier
from chexseg_ray.pseudo.gradcam import grad_cam

K = 3
oracle = pytest.mark.filterwarnings("ignore")  # captum and grad-cam warn of hooks


class PostRelu(nn.Module):
    """torchvision's DenseNet with the averaged features as a module of their own, for the oracles to hook."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.features, self.last, self.classifier = model.features, nn.ReLU(), model.classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.last(self.features(x)).mean(dim=(2, 3)))


@pytest.fixture(scope="module", params=["densenet121", "resnet18"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    net = build_classifier(request.param, K, "ignore")
    net.train()
    with torch.no_grad():  # batch statistics that are not the initial ones
        net(torch.randn(8, 3, 64, 64))
    return net.eval()


def images() -> torch.Tensor:
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def largest_difference(ours: torch.Tensor, other: torch.Tensor) -> float:
    return float((ours - other).abs().max() / other.abs().max().clamp(min=1e-12))


def targets(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A network and its layer whose output is averaged."""
    if hasattr(model, "layer4"):
        return model, model.layer4
    wrapped = PostRelu(model).eval()
    return wrapped, wrapped.last


@oracle
def test_post_relu_maps_are_captums(model: nn.Module) -> None:
    from captum.attr import LayerGradCam

    net, layer = targets(model)
    _, ours = grad_cam(model, images(), K)
    for k in range(K):
        other = LayerGradCam(net, layer).attribute(images(), target=k, relu_attributions=True).detach()
        assert largest_difference(ours[:, k], other[:, 0]) < 1e-5


@oracle
def test_post_relu_maps_are_pytorch_grad_cams(model: nn.Module) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    net, layer = targets(model)
    _, ours = grad_cam(model, images(), K)
    with GradCAM(model=net, target_layers=[layer]) as cam:
        for k in range(K):
            cam(input_tensor=images(), targets=[ClassifierOutputTarget(k)] * 2)
            activations, gradients = cam.activations_and_grads.activations[0], cam.activations_and_grads.gradients[0]
            raw = cam.get_cam_image(images(), layer, None, activations.numpy(), gradients.numpy(), False)
            assert largest_difference(ours[:, k], torch.from_numpy(np.maximum(raw, 0))) < 1e-5


@oracle
def test_pre_relu_maps_are_captums_on_norm5() -> None:
    from captum.attr import LayerGradCam

    torch.manual_seed(0)
    net = build_classifier("densenet121", K, "ignore").eval()
    _, ours = grad_cam(net, images(), K, variant="pre_relu")

    class OutOfPlace(PostRelu):
        """captum needs norm5's output kept, so the ReLU behind it must not be in place."""

    wrapped = OutOfPlace(net).eval()
    for k in range(K):
        cam = LayerGradCam(wrapped, wrapped.features.norm5)
        other = cam.attribute(images(), target=k, relu_attributions=True).detach()
        assert largest_difference(ours[:, k], other[:, 0]) < 1e-5


def test_logits_are_the_models_own(model: nn.Module) -> None:
    for fine in (False, True) if hasattr(model, "features") else (False,):
        logits, _ = grad_cam(model, images(), K, fine_grid=fine)
        with torch.no_grad():
            assert torch.allclose(logits, model(images()), atol=1e-6)


def test_the_fine_grid_is_twice_as_fine_and_resnet_refuses_it(model: nn.Module) -> None:
    if hasattr(model, "features"):
        assert grad_cam(model, images(), K)[1].shape == (2, K, 3, 3)
        assert grad_cam(model, images(), K, fine_grid=True)[1].shape == (2, K, 6, 6)
    else:
        with pytest.raises(ValueError, match="DenseNet"):
            grad_cam(model, images(), K, fine_grid=True)


def test_a_threeclass_head_maps_positive_minus_negative() -> None:
    torch.manual_seed(0)
    three = build_classifier("resnet18", K, "threeclass").eval()
    one = build_classifier("resnet18", K, "ignore").eval()
    one.load_state_dict({n: t for n, t in three.state_dict().items() if not n.startswith("fc")}, strict=False)
    with torch.no_grad():
        weight = three.fc.weight.view(K, 3, -1)
        one.fc.weight.copy_(weight[:, 2] - weight[:, 1])
    assert torch.allclose(grad_cam(three, images(), K)[1], grad_cam(one, images(), K)[1], atol=1e-6)
