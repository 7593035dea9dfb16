"""A trained network as a torch.export program, which runs without smp and without this package."""

import io

import torch
from torch import nn

from chexseg_ray.errors import InputError
from chexseg_ray.predict.card import ExportedModel, open_model

_MAX_DIFFERENCE = 1e-4  # of probabilities, between the network and its program


class _Probabilities(nn.Module):
    """Normalised images float [B, 3, S, S] to probabilities [B, K, S, S].

    Args:
        network: gives scores before the sigmoid.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the probabilities [B, K, S, S], in [0, 1], of normalised `images` [B, 3, S, S]."""
        scores: torch.Tensor = self.network(images).sigmoid()
        return scores


def export_program(model: ExportedModel) -> tuple[bytes, float]:
    """Export a network as a program for any batch size, and compare both on random images.

    Args:
        model: card and weights.

    Returns:
        The bytes of a file for `torch.export.load`, and the greatest difference of a probability.

    Raises:
        InputError: the weights do not fit the card, or the difference is more than 1e-4.
    """
    network = _Probabilities(open_model(model).model.cpu()).eval()
    size = int(model.card["size"])
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(count, 3, size, size, generator=generator) for count in (2, 3)]
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(network, (images[0],), dynamic_shapes={"images": {0: batch}})
    stream = io.BytesIO()
    torch.export.save(program, stream)
    stream.seek(0)
    loaded = torch.export.load(stream).module()
    with torch.no_grad():
        difference = max(float((loaded(x) - network(x)).abs().max()) for x in images)
    if not difference <= _MAX_DIFFERENCE:
        found = f"the exported program's outputs differ by {difference:.1e} from the network's"
        raise InputError(f"{found}: this torch ({torch.__version__}) cannot export it: use another version")
    return stream.getvalue(), difference
