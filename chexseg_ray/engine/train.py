"""The loop of all trainings.

A loop is a function of (job, report). It writes its files through the job's attempt and reports plain metrics, the last
of which are its result. It is handed `report`, because inside a trial ray.train's own raises. In a group of several
processes, each has its share of every batch (`Replica`), and only rank 0 writes.
"""

import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from chexseg_ray.config.resources import WorkerCompute
from chexseg_ray.engine.device_updates import device_updates
from chexseg_ray.engine.devices import device_facts, device_for
from chexseg_ray.engine.execution import Task
from chexseg_ray.engine.losses import Losses
from chexseg_ray.engine.replicas import Replica
from chexseg_ray.engine.telemetry import Telemetry
from chexseg_ray.engine.training_state import Progress, StateKeeper, to_safetensors
from chexseg_ray.errors import InputError
from chexseg_ray.progress import track
from chexseg_ray.store.step import FileEntry, Record
from chexseg_ray.store.store import Attempt

Report = Callable[[dict[str, Any]], None]
WEIGHTS = "weights.safetensors"


class NanLossError(InputError):
    """A loss, score or weight is not finite: a fault of the config (exit code 2; in a trial, only its point fails)."""


class TrainingSettings(Protocol):
    """What the loop itself must know of a training's settings."""

    @property
    def num_updates(self) -> int:
        """Length of the training, in updates."""


S = TypeVar("S", bound=TrainingSettings)


@dataclass(frozen=True)
class TrainingJob(Generic[S]):
    """Everything that one training needs, picklable.

    Args:
        settings: what shapes its numbers.
        inputs: the records of its inputs by role.
        attempt: where it writes.
        threads: threads of torch in each process.
        state_seconds: seconds between two saved states.
        name: its label and the step's fingerprint, with a space between them.
        num_gpus: GPUs of each process; below 1, its share of one.
        cuda_graphs: whether its updates are CUDA graphs on a GPU.
        deterministic: whether the processes of a group use only kernels that give the same bytes in every run, as
            `build` lets the driver and trials do.
    """

    settings: S
    inputs: Mapping[str, Record]
    attempt: Attempt
    threads: int
    state_seconds: float
    name: str
    num_gpus: float = 0.0
    cuda_graphs: bool = False
    deterministic: bool = False

    @property
    def stage(self) -> str:
        """The kind of step that the training makes."""
        return self.attempt.address.split("/")[0]


def job_facts(task: Task, resources: WorkerCompute, label: str) -> dict[str, Any]:
    """The arguments of a TrainingJob beside its settings, by name.

    Args:
        task: the step to train.
        resources: what the training asks for.
        label: what people call the training.
    """
    return {
        "inputs": dict(task.inputs),
        "attempt": task.attempt,
        "threads": resources.threads,
        "state_seconds": task.execution.compute.state_seconds,
        "name": f"{label} {task.step.fingerprint}",
        "num_gpus": resources.num_gpus,
        "cuda_graphs": task.execution.compute.cuda_graphs,
        "deterministic": task.execution.compute.deterministic,
    }


Values = dict[str, float]  # the losses of one update by name
Update = Callable[[int], tuple[torch.Tensor, Sequence[str]]]  # does update u; returns its losses, its batch's cxr_ids


class TrainingRun:
    """What all trainings share: device, share of the batch, saved state, progress, telemetry, the loop, and its result.

    Args:
        job: the training.
        report: takes plain metrics, the last of which are the result.
        seed: torch's seed; the weights that are made next are a function of it.
    """

    def __init__(self, job: TrainingJob[Any], report: Report, seed: int) -> None:
        """Set torch's threads and seed."""
        self.job, self._report = job, report
        self._start = time.monotonic()
        torch.set_num_threads(job.threads)
        torch.manual_seed(seed)
        self._seed = seed
        self.device = device_for(job.num_gpus)
        self.replica = Replica.here()
        self.sum_ = self.replica.sum_ if self.replica.count > 1 else None
        self.progress = Progress()

    def resume(self, model: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
        """Put the newest saved state, if there is one, into model and optimiser.

        Every process loads it; from here on, only rank 0 saves.

        Args:
            model: the network, on its device.
            optimiser: the optimiser of its parameters.

        Returns:
            How far the training is.
        """
        self._model, self._optimiser = model, optimiser
        every = self.job.state_seconds if self.replica.rank == 0 else math.inf
        self._keeper = StateKeeper(self.job.attempt, every)
        self.progress = self._keeper.load(model, optimiser)
        return self.progress

    def updates(
        self,
        update: Callable[..., torch.Tensor],
        optimiser: torch.optim.Optimizer,
        modules: Sequence[nn.Module],
        num_replicas: int,
        precision: str,
    ) -> Callable[..., torch.Tensor]:
        """Make the function that moves a batch to the device and does an update there, as device_updates does.

        Args:
            update: takes a Pass, which runs a network in train mode, and the batch's tensors; returns losses.
            optimiser: changed by the update.
            modules: the networks that the update changes.
            num_replicas: the number of parts in which BatchNorm sees a batch.
            precision: of the networks' passes, float32 | bf16.
        """
        return device_updates(
            update,
            optimiser,
            modules,
            device=self.device,
            replica=self.replica,
            num_replicas=num_replicas,
            precision=precision,
            seed=self._seed,
            graph=self.job.cuda_graphs,
        )

    def train(
        self,
        update: Update,
        names: Sequence[str],
        due: Collection[int],
        entry: Callable[[Values], tuple[dict[str, float], float]],
        remedy: str,
        note: Callable[[Values], str] | None = None,
        point: tuple[str, float] | None = None,
    ) -> None:
        """Do updates until the training is as long as its settings ask for.

        The losses of an update are read after the next one has begun, so that a GPU always has work. One that is not
        finite is found before anything is saved or reported.

        Args:
            update: does update u, a function of (weights, seed, u).
            names: of the losses that it returns.
            due: the numbers of updates after which the history gets an entry.
            entry: makes of the newest update's values the history's entry, and the score by which the best checkpoint
                is kept (NaN: not kept).
            remedy: the config field to lower when a value is not finite.
            note: puts the values into a few words, which are shown while it trains; None shows no progress.
            point: (method, p) of a sweep point, whose entries are reported too; None elsewhere.

        Raises:
            NanLossError: a value is not finite; names the update and its images.
        """
        job, progress, total = self.job, self.progress, self.job.settings.num_updates
        shows = self.replica.rank == 0
        telemetry = Telemetry(job.attempt.store, job.name, job.stage, total, progress.update, shows)
        show = track(f"{job.name.rpartition(' ')[0]}: updates", total) if note else None
        newest: Losses | None = None

        def checked(losses: Losses) -> Values:
            values = dict(zip(names, losses.read(), strict=True))
            refuse_not_finite(values, f"{job.stage} update {losses.update}", losses.ids, remedy)
            return values

        def described(losses: Losses) -> str:
            return note(checked(losses)) if note else ""

        while progress.update < total:
            last, newest = newest, Losses(progress.update, *update(progress.update))
            if last is not None:
                checked(last)
            progress.update += 1
            if progress.update in due:
                new_entry, score = entry(checked(newest))
                progress.history.append(new_entry)
                progress.keep_if_best(self._model, score)
                if point is not None:
                    self._report(dict(new_entry))
                telemetry.recorded(new_entry, point)
            if show:
                show(progress.update, partial(described, newest))
            telemetry.updated(progress.update)
            if self._keeper.is_due():
                checked(newest)
                self._keeper.save(self._model, self._optimiser, progress)
        if newest is not None:
            checked(newest)

    def finish(
        self,
        weights: Mapping[str, torch.Tensor],
        facts: Mapping[str, Any],
        rows: int,
        metrics: dict[str, Any],
        remedy: str,
    ) -> None:
        """Write the weights, which only rank 0 does, and report the result.

        Args:
            weights: the state dict to write.
            facts: what is needed to build the network, for the file's metadata; plain JSON values.
            rows: number of images that it trained on.
            metrics: the record's metrics.
            remedy: the config field to lower when a weight is not finite.

        Raises:
            NanLossError: a weight is not finite.
        """
        if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
            rule = f"weights are not finite after update {self.progress.update}"
            raise NanLossError(f"{self.job.stage} {rule}: lower {remedy}")
        files = []
        if self.replica.rank == 0:
            files.append(self.job.attempt.write(WEIGHTS, to_safetensors(weights, {"model": json.dumps(facts)})))
        run = {
            **device_facts(self.device),
            "threads": self.job.threads,
            "workers": self.replica.count,
            "training_seconds": round(time.monotonic() - self._start, 2),
        }
        self._report(result(files, rows, metrics, run))


def tenths(num_updates: int) -> set[int]:
    """Return ten numbers of updates at equal distances, the last of which is `num_updates`."""
    return parts_of(num_updates, 10)


def parts_of(num_updates: int, parts: int) -> set[int]:
    """Cut a training of `num_updates` updates into `parts` equal parts, and return the updates that end them."""
    return {math.ceil(num_updates * (i + 1) / parts) for i in range(parts)}


def refuse_not_finite(values: Values, what: str, ids: Sequence[str], remedy: str) -> None:
    """Refuse values that are not finite.

    Args:
        values: numbers by name.
        what: where they come from, for the message.
        ids: the cxr_ids that they were computed from.
        remedy: the config field to lower.

    Raises:
        NanLossError: names the first such value, where it comes from, the images, and the field to lower.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise NanLossError(f"{what}: {name.replace('_', ' ')} is {value}, images {', '.join(ids)}: lower {remedy}")


def result(files: Sequence[FileEntry], rows: int, metrics: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """The last report of a loop: what it made, as one JSON text under `made`.

    Args:
        files: entries of the files that it wrote.
        rows: number of images that it trained on.
        metrics: the record's metrics.
        run: the record's circumstances of this run.
    """
    made = {"files": [asdict(entry) for entry in files], "rows": rows, "metrics": metrics, "run": run}
    return {"made": json.dumps(made)}
