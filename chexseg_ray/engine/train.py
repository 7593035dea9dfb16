"""Run one training through Ray Train, in the calling process (0 workers) or a worker group; the loop of all trainings.

A loop is a function of (job, report). It writes its files through the job's attempt and reports plain metrics, the last
of which are its result. It is handed `report`, because inside a trial ray.train's own raises. In a group of several
processes, each has its share of every batch (`Replica`), and only rank 0 writes.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from chexseg_ray.config.resources import WorkerCompute
from chexseg_ray.engine.execution import Execution, Made, Task
from chexseg_ray.engine.replicas import Replica
from chexseg_ray.engine.telemetry import Telemetry
from chexseg_ray.engine.training_state import Progress, StateKeeper, to_safetensors
from chexseg_ray.errors import InputError, TransientError, fault_of, raise_fault
from chexseg_ray.progress import track
from chexseg_ray.store.step import FileEntry, Record
from chexseg_ray.store.store import Attempt

Report = Callable[[dict[str, Any]], None]
Loop = Callable[[Any, Report], None]
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
    """

    settings: S
    inputs: Mapping[str, Record]
    attempt: Attempt
    threads: int
    state_seconds: float
    name: str

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
    }


Values = dict[str, float]  # the losses of one update by name
Update = Callable[[int], tuple[Values, Sequence[str]]]  # does update u; returns its values and the cxr_ids of its batch


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
        self.device = training_device()
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

    def train(
        self,
        update: Update,
        due: Collection[int],
        entry: Callable[[Values], tuple[dict[str, float], float]],
        remedy: str,
        note: Callable[[Values], str] | None = None,
        point: tuple[str, float] | None = None,
    ) -> None:
        """Do updates until the training is as long as its settings ask for.

        Args:
            update: does update u, a function of (weights, seed, u).
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
        while progress.update < total:
            values, ids = update(progress.update)
            refuse_not_finite(values, f"{job.stage} update {progress.update}", ids, remedy)
            progress.update += 1
            if progress.update in due:
                new_entry, score = entry(values)
                progress.history.append(new_entry)
                progress.keep_if_best(self._model, score)
                if point is not None:
                    self._report(dict(new_entry))
                telemetry.recorded(new_entry, point)
            if show and note:
                show(progress.update, note(values))
            telemetry.updated(progress.update)
            self._keeper.save_if_due(self._model, self._optimiser, progress)

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
            "device": str(self.device),
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


def training_device() -> torch.device:
    """The GPU that Ray gave this process, or the CPU where it gave none."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def run_training(loop: Loop, job: TrainingJob[Any], resources: WorkerCompute, execution: Execution, name: str) -> Made:
    """Run a loop to its end and return what it made.

    Args:
        loop: the training, a function of (job, report).
        job: its argument.
        resources: what it asks for; 0 workers train in this process, more start a worker group.
        execution: how it runs.
        name: what Ray Train calls the run.

    Raises:
        InputError: the loop raised it.
        TransientError: likewise, or the processes of a group were lost too often.
    """
    if resources.num_workers:
        return _run_group(loop, job, resources, execution, name)
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    last: dict[str, Any] = {}

    def capture(metrics: dict[str, Any]) -> None:
        """Keep what the loop reports, and pass on everything but the result."""
        last.update(metrics)
        if execution.report is not None:
            execution.report({key: value for key, value in metrics.items() if key != "made"})

    logging.getLogger("ray.train").setLevel(logging.WARNING)  # else it says that it runs here, where no Ray runs yet
    TorchTrainer(lambda: loop(job, capture), scaling_config=ScalingConfig(num_workers=0)).fit()
    return _made_from(last)


def _run_group(loop: Loop, job: TrainingJob[Any], resources: WorkerCompute, execution: Execution, name: str) -> Made:
    """As run_training, in a worker group."""
    from ray.exceptions import RayActorError, RaySystemError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import WorkerGroupError

    execution.start_ray()
    max_failures = execution.compute.max_failures
    asked = {"CPU": resources.num_cpus}
    if resources.num_gpus:
        asked["GPU"] = resources.num_gpus
    store = job.attempt.store
    trainer = TorchTrainer(
        _worker_loop,
        train_loop_config={"loop": loop, "job": job},
        torch_config=TorchConfig(backend="nccl" if resources.num_gpus >= 1 else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers, use_gpu=resources.num_gpus > 0, resources_per_worker=asked
        ),
        run_config=RunConfig(
            name=name,
            failure_config=FailureConfig(max_failures=max_failures),
            storage_filesystem=store.filesystem,
            storage_path=store.path(".ray"),
        ),
    )
    trainer.__dict__["_register_sigint_handler"] = _no_handler  # Ctrl-C is raised, see errors.py
    try:
        trainer.fit()
    except WorkerGroupError as error:
        _raise_fault_of_worker(error.worker_failures.values())
        if not all(isinstance(failure, RayActorError | RaySystemError) for failure in error.worker_failures.values()):
            raise  # a fault of the loop itself
        rule = f"its processes or nodes were lost {max_failures + 1} times"
        raise TransientError(f"{name}: {rule}: run again, or raise compute.max_failures") from None
    made = json.loads(store.get(_made_path(job)))
    store.delete(_made_path(job))
    raise_fault(made)
    return _made_from(made)


def _no_handler(_: object) -> None:
    """In place of Ray Train's own handler of Ctrl-C, which ends the driver with exit code 1."""


def _raise_fault_of_worker(failures: Iterable[BaseException]) -> None:
    """Raise a transient error if a worker's storage failed, so that it could not hand over its own."""
    for failure in failures:
        cause = getattr(failure, "_base_exc", failure)  # what Ray Train has wrapped
        if isinstance(cause, TransientError | OSError):
            raise TransientError(" ".join(str(cause).split())) from None


def _made_path(job: TrainingJob[Any]) -> str:
    """Where a worker leaves the result, or the fault, for the driver."""
    return f"{job.attempt.address}/{job.attempt.name}/made.json"


def _worker_loop(config: dict[str, Any]) -> None:
    """Run the loop in a worker.

    Its last report goes through the store, because Train's Result drops metrics that came without a checkpoint.
    """
    import ray.train
    import ray.train.torch

    job = config["job"]
    if torch.cuda.is_available():  # a worker sees all of its node's GPUs
        torch.cuda.set_device(ray.train.torch.get_device())
    if job.attempt.store.exists(_made_path(job)):
        return  # a fault of another replica, after which Train started the group again

    def report(metrics: dict[str, Any]) -> None:
        """Put the result into the store, which only rank 0 does, and pass on the rest to Ray Train."""
        if "made" in metrics and Replica.here().rank == 0:
            job.attempt.store.put(_made_path(job), json.dumps(metrics).encode())
        ray.train.report({key: value for key, value in metrics.items() if key != "made"})

    try:
        config["loop"](job, report)
    except (InputError, TransientError) as error:  # handed over, not raised: Train would start the worker again
        job.attempt.store.put(_made_path(job), json.dumps(fault_of(error)).encode())
        if Replica.here().count > 1:
            raise  # the others may wait for this one: the group starts again, sees the fault and ends


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


def _made_from(metrics: dict[str, Any]) -> Made:
    """The inverse of result()."""
    made = json.loads(metrics["made"])
    files = [FileEntry(**entry) for entry in made["files"]]
    return Made(files, rows=made["rows"], metrics=made["metrics"], run=made["run"])
