"""A trained network as a torch.export program, which runs without smp and without this package."""

import io

import torch
from torch import nn

from chexseg_ray.errors import InputError
from chexseg_ray.stages.exported import ExportedModel, open_model

_MOST_APART = 1e-4  # of probabilities, between the network and its program


class _Probabilities(nn.Module):
    """Normalised images float [B, 3, S, S] to probabilities [B, K, S, S]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.network(images).sigmoid()
        return scores


def export_program(model: ExportedModel) -> tuple[bytes, float]:
    """The program for any batch size (`torch.export.load`), and how far its outputs are from the network's on random images.

    Raises:
        InputError: they are more than 1e-4 apart.
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
        apart = max(float((loaded(x) - network(x)).abs().max()) for x in images)
    if not apart <= _MOST_APART:
        raise InputError(f"the exported program is {apart:.1e} from the network: this torch ({torch.__version__}) cannot export it")
    return stream.getvalue(), apart
