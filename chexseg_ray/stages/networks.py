"""The network of a segmentation step: how it is built, checked beforehand, and loaded from the step's record."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from chexseg_ray.engine.train import WEIGHTS
from chexseg_ray.engine.training_state import from_safetensors
from chexseg_ray.errors import InputError
from chexseg_ray.segmentation.network import build_network, check_network
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store

NETWORK_FACTS = ("architecture", "encoder", "output_stride", "atrous_rates", "pathologies", "size")


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """What a segmentation network is built from.

    Args:
        architecture: a name of smp.
        encoder: a name of smp, or of timm as `tu-...`.
        pathologies: K names, in channel order.
        size: S, pixels of a side.
        output_stride: DeepLab's, 8 or 16; None for other architectures.
        atrous_rates: DeepLab's three dilations; None for other architectures.
    """

    architecture: str
    encoder: str
    pathologies: Sequence[str]
    size: int
    output_stride: int | None = None
    atrous_rates: Sequence[int] | None = None

    def build(self) -> nn.Module:
        """Build the network, with random weights."""
        count = len(self.pathologies)
        return build_network(self.architecture, self.encoder, count, self.output_stride, self.atrous_rates)


def check_networks(
    pairs: Iterable[tuple[str, str]], size: int, output_stride: int, atrous_rates: Sequence[int]
) -> None:
    """Refuse networks that smp cannot build, before anything is trained.

    Args:
        pairs: architecture and encoder of each network.
        size: S, pixels of a side.
        output_stride: DeepLab's, 8 or 16.
        atrous_rates: DeepLab's three dilations.

    Raises:
        InputError: smp cannot build one of them, or it does not take such images; names it.
    """
    for architecture, encoder in pairs:
        try:
            check_network(architecture, encoder, size, output_stride, atrous_rates)
        except ValueError as error:
            raise InputError(f"segmentation.architecture, segmentation.encoder: {error}: choose others") from None


def load_segmentation(store: Store, record: Record) -> tuple[nn.Module, dict[str, Any]]:
    """Load the network of a segmentation `record` from `store`, in eval mode on the CPU.

    Returns it with those of NETWORK_FACTS that it has and its normalisation, by name.
    """
    tensors, metadata = from_safetensors(store.read(record, WEIGHTS))
    facts: dict[str, Any] = json.loads(metadata["model"])
    model = NetworkSettings(**{name: facts[name] for name in NETWORK_FACTS if name in facts}).build()
    model.load_state_dict(tensors)
    return model.eval(), facts


def threshold_array(record: Record, pathologies: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return the thresholds, float32 [K], of a segmentation `record` in the order of the K names `pathologies`."""
    return np.array([record.metrics["thresholds"][name]["threshold"] for name in pathologies], dtype=np.float32)
