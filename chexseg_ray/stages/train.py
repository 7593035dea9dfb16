"""Run one training loop through Ray Train: in the calling process (0 workers) or in a worker group.

A loop is a function of (job, report); it writes its files through the job's attempt and reports plain metrics, the last of
which are its result. It is handed `report`, because inside a trial ray.train's own raises. In a group of several, each loop
asks `Replica.here()` which share of a batch is its own, and rank 0 alone writes.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from chexseg_ray.artifacts import Attempt, FileEntry, Record
from chexseg_ray.errors import InputError, TransientError, fault_of, raise_fault
from chexseg_ray.stages.execution import Execution, Made, Task, TrainResources
from chexseg_ray.stages.replicas import Replica
from chexseg_ray.stages.telemetry import Telemetry
from chexseg_ray.stages.training_state import StateKeeper

Report = Callable[[dict[str, Any]], None]
Loop = Callable[[Any, Report], None]


class NanLossError(InputError):
    """A loss, a score or a weight is not finite: a fault of the config (exit code 2; in a trial, of its point alone)."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that the training of a shared model needs, picklable. `run` is its name for people."""

    config: Mapping[str, Any]
    inputs: Mapping[str, Record]
    attempt: Attempt
    threads: int
    state_seconds: float
    run: str

    @classmethod
    def of(cls, task: Task, resources: TrainResources, label: str = "") -> "TrainingJob":
        label = label or " ".join([task.step.name, *filter(None, [task.step.config.get("architecture")])])
        run = f"{label} {task.step.fingerprint}"
        return cls(dict(task.step.config), dict(task.inputs), task.attempt, resources.threads, task.execution.state_seconds, run)

    def telemetry(self, replica: Replica, update: int) -> Telemetry:
        """Of this training, which begins at `update`."""
        stage = self.attempt.address.split("/")[0]
        return Telemetry(self.attempt.store, self.run, stage, self.config["num_updates"], update, shows=replica.rank == 0)

    def keeper(self, replica: Replica) -> StateKeeper:
        """Of its training state, which every process loads and rank 0 alone saves."""
        return StateKeeper(self.attempt, self.state_seconds if replica.rank == 0 else math.inf)

    def run_facts(self, device: torch.device, replica: Replica, start: float) -> dict[str, Any]:
        """What the record says of how it was trained; `start` is time.monotonic() at the beginning."""
        seconds = round(time.monotonic() - start, 2)
        return {"device": str(device), "threads": self.threads, "workers": replica.count, "training_seconds": seconds}


def require_finite(what: str, weights: Mapping[str, torch.Tensor], update: int, remedy: str) -> None:
    """Refuse weights that are not finite.

    Raises:
        NanLossError: naming what was trained, the update, and the field to lower.
    """
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights.values()):
        raise NanLossError(f"{what} weights are not finite after update {update}: lower {remedy}")


def training_device() -> torch.device:
    """The GPU that Ray gave this process, or the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def begin(seed: int, threads: int) -> torch.device:
    """Thread count and seed of a loop; the device it runs on."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    return training_device()


def run_training(loop: Loop, job: Any, resources: TrainResources, execution: Execution, name: str) -> Made:
    """Run a loop to its end and return what it made."""
    from ray.exceptions import RayActorError, RaySystemError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import WorkerGroupError

    last: dict[str, Any] = {}

    def capture(metrics: dict[str, Any]) -> None:
        last.update(metrics)
        if execution.report is not None:
            execution.report({k: v for k, v in metrics.items() if k not in ("made",)})

    if resources.num_workers == 0:
        TorchTrainer(lambda: loop(job, capture), scaling_config=ScalingConfig(num_workers=0)).fit()
        return _made(last)
    execution.start_ray()
    scaling = ScalingConfig(
        num_workers=resources.num_workers,
        use_gpu=resources.num_gpus > 0,
        resources_per_worker={"CPU": resources.num_cpus, **({"GPU": resources.num_gpus} if resources.num_gpus else {})},
    )
    store, failures = job.attempt.store, FailureConfig(max_failures=execution.max_failures)
    storage = RunConfig(name=name, failure_config=failures, storage_filesystem=store.filesystem, storage_path=store.path(".ray"))
    backend = TorchConfig(backend="nccl" if resources.num_gpus >= 1 else "gloo")
    arguments = {"loop": loop, "job": job}
    trainer = TorchTrainer(_worker_loop, train_loop_config=arguments, torch_config=backend, scaling_config=scaling, run_config=storage)
    try:
        trainer.fit()
    except WorkerGroupError as error:
        if not all(isinstance(own, RayActorError | RaySystemError) for own in error.worker_failures.values()):
            raise  # a fault of the loop itself
        times = execution.max_failures + 1
        raise TransientError(f"{name}: its processes or nodes were lost {times} times: run again, or raise compute.max_failures") from None
    made = json.loads(job.attempt.store.get(_made_path(job)))
    job.attempt.store.delete(_made_path(job))
    raise_fault(made)
    return _made(made)


def _made_path(job: Any) -> str:
    return f"{job.attempt.address}/{job.attempt.name}/made.json"


def _worker_loop(config: dict[str, Any]) -> None:
    """In the worker: the last report goes through the store, as Train's Result drops metrics that came without a checkpoint."""
    import ray.train
    import ray.train.torch

    job = config["job"]
    if torch.cuda.is_available():  # a worker sees all of its node's GPUs
        torch.cuda.set_device(ray.train.torch.get_device())
    if job.attempt.store.exists(_made_path(job)):
        return  # a fault of another replica, after which Train started the group again

    def report(metrics: dict[str, Any]) -> None:
        if "made" in metrics and Replica.here().rank == 0:
            job.attempt.store.put(_made_path(job), json.dumps(metrics).encode())
        ray.train.report({k: v for k, v in metrics.items() if k != "made"})

    try:
        config["loop"](job, report)
    except (InputError, TransientError) as error:  # handed over, not raised: Train would start the worker again
        job.attempt.store.put(_made_path(job), json.dumps(fault_of(error)).encode())
        if Replica.here().count > 1:  # the others may wait for this one: the group starts again, sees the fault and ends
            raise


def result(files: list[FileEntry], rows: int, metrics: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """The last report of a loop."""
    return {"made": json.dumps({"files": [[f.path, f.size, f.sha256] for f in files], "rows": rows, "metrics": metrics, "run": run})}


def _made(metrics: dict[str, Any]) -> Made:
    raw = json.loads(metrics["made"])
    return Made([FileEntry(*f) for f in raw["files"]], rows=raw["rows"], metrics=raw["metrics"], run=raw["run"])
