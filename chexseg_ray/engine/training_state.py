"""Training state at the step's address: a killed training continues from it, in every mode.

One safetensors file per state, `state/{update}-{attempt}-{sha256[:16]}`: tensors by name, numbers in the metadata. The
newest state with the right hash is used; two are kept. Random numbers and sampler positions are functions of (seed,
update) and need no state.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from chexseg_ray.engine import prometheus as metrics
from chexseg_ray.store.store import Attempt


@dataclass
class Progress:
    """Where a training is.

    Args:
        update: number of updates done.
        best_update: number of updates after which the best checkpoint was taken; -1 without one.
        best_score: its score; -1 without one.
        history: the entries so far, {update, loss, ...}.
        best: the best checkpoint's state dict; empty without one.
    """

    update: int = 0
    best_update: int = -1
    best_score: float = -1.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def keep_if_best(self, model: nn.Module, score: float) -> bool:
        """Copy the weights when the score is above the best so far, which a NaN never is.

        Args:
            model: has the weights.
            score: their score; higher is better.

        Returns:
            Whether they were copied.
        """
        if not score > self.best_score:
            return False
        self.best_score, self.best_update = score, self.update
        self.best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        return True


def to_safetensors(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Write tensors as safetensors.

    Args:
        tensors: by name, in any memory format, on any device.
        metadata: texts by name.

    Returns:
        The file's bytes.
    """
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, dict(metadata or {}))


def from_safetensors(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read safetensors.

    Args:
        data: the file's bytes.

    Returns:
        Tensors on the CPU by name, sorted by name (the library's order differs from call to call), and the metadata.
    """
    from safetensors.torch import load

    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return dict(sorted(load(data).items())), header.get("__metadata__", {})


class StateKeeper:
    """Saves and loads the state of one training.

    Args:
        attempt: the attempt at the training's step; states lie beside it, for the next attempt.
        every_seconds: between two saved states; infinite in a process that does not save.
    """

    def __init__(self, attempt: Attempt, every_seconds: float) -> None:
        self._attempt = attempt
        self._folder = f"{attempt.address}/state"
        self._every = every_seconds
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Return whether the last state is old enough for a new one."""
        return time.monotonic() - self._last >= self._every

    def save(self, model: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress) -> None:
        """Save the state, and delete all but the newest two.

        Args:
            model: its weights are saved.
            optimiser: its state is saved.
            progress: saved with them.
        """
        start = time.monotonic()
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in progress.best.items()}
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{key}": value for key, value in state.items()}
        names = ("update", "best_update", "best_score", "history")
        numbers = {name: getattr(progress, name) for name in names}
        data = to_safetensors(tensors, {"progress": json.dumps(numbers)})
        name = f"{progress.update:09d}-{self._attempt.name}-{hashlib.sha256(data).hexdigest()[:16]}"
        self._attempt.store.put(f"{self._folder}/{name}", data)
        for old in self._names()[:-2]:
            self._attempt.store.delete(f"{self._folder}/{old}")
        self._last = time.monotonic()
        metrics.record("checkpoint_seconds", self._last - start, stage=self._attempt.address.split("/")[0])

    def load(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
        """Put the newest state with the right hash into model and optimiser.

        Args:
            model: takes the weights.
            optimiser: takes its state.

        Returns:
            The saved progress; a new Progress when there is no such state.
        """
        for name in reversed(self._names()):
            data = self._attempt.store.get(f"{self._folder}/{name}")
            if hashlib.sha256(data).hexdigest()[:16] == name.rsplit("-", 1)[-1]:
                return self._restore(data, model, optimiser)
        return Progress()

    def _names(self) -> list[str]:
        """The names of the saved states, the newest last."""
        return [
            name
            for name in self._attempt.store.names(self._folder)
            if name.count("-") == 2 and not name.endswith(".tmp")
        ]

    def _restore(self, data: bytes, model: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
        """Put a saved state into model and optimiser, and return its progress."""
        tensors, metadata = from_safetensors(data)
        model.load_state_dict(_strip_prefix(tensors, "model."))
        state: dict[int, dict[str, torch.Tensor]] = {}
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        for key, value in _strip_prefix(tensors, "optimiser.").items():
            index, name = key.split(".", 1)
            own = parameters[int(index)]
            if value.shape == own.shape:  # a fused optimiser refuses another memory format than the weight's
                value = torch.empty_like(own, dtype=value.dtype, device="cpu").copy_(value)
            state.setdefault(int(index), {})[name] = value
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        numbers: dict[str, Any] = json.loads(metadata["progress"])
        return Progress(**numbers, best=_strip_prefix(tensors, "best."))


def _strip_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with a prefix, by the rest of the name."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
