"""Run one training through Ray Train: in the calling process (0 workers), or in a worker group."""

import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch

from chexseg_ray.config.resources import WorkerCompute
from chexseg_ray.engine.devices import use_deterministic_algorithms
from chexseg_ray.engine.execution import Execution, Made
from chexseg_ray.engine.memory import enough_memory
from chexseg_ray.engine.replicas import Replica
from chexseg_ray.engine.train import Report, TrainingJob
from chexseg_ray.errors import InputError, TransientError, fault_of, raise_fault
from chexseg_ray.store.step import FileEntry

Loop = Callable[[Any, Report], None]


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

    def guarded() -> None:
        """Run the loop, and let go of the memory that torch keeps for the next one: others may share the GPU."""
        try:
            with enough_memory(_remedy(job)):
                loop(job, capture)
        finally:
            if job.num_gpus:
                torch.cuda.empty_cache()

    logging.getLogger("ray.train").setLevel(logging.WARNING)  # else it says that it runs here, where no Ray runs yet
    TorchTrainer(guarded, scaling_config=ScalingConfig(num_workers=0)).fit()
    return _made_from(last)


def _remedy(job: TrainingJob[Any]) -> str:
    """What helps against too little memory on a GPU."""
    share = f"ask for a larger part (compute.{job.stage}.num_gpus is {job.num_gpus:g}), or " if job.num_gpus < 1 else ""
    return f"{share}lower {job.stage}.batch_size"


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
    if job.deterministic:
        use_deterministic_algorithms()
    if job.num_gpus and torch.cuda.is_available():  # a worker sees all of its node's GPUs
        torch.cuda.set_device(ray.train.torch.get_device())
    if job.attempt.store.exists(_made_path(job)):
        return  # a fault of another replica, after which Train started the group again

    def report(metrics: dict[str, Any]) -> None:
        """Put the result into the store, which only rank 0 does, and pass on the rest to Ray Train."""
        if "made" in metrics and Replica.here().rank == 0:
            job.attempt.store.put(_made_path(job), json.dumps(metrics).encode())
        ray.train.report({key: value for key, value in metrics.items() if key != "made"})

    try:
        with enough_memory(_remedy(job)):
            config["loop"](job, report)
    except (InputError, TransientError) as error:  # handed over, not raised: Train would start the worker again
        job.attempt.store.put(_made_path(job), json.dumps(fault_of(error)).encode())
        if Replica.here().count > 1:
            raise  # the others may wait for this one: the group starts again, sees the fault and ends


def _made_from(metrics: dict[str, Any]) -> Made:
    """The inverse of result()."""
    made = json.loads(metrics["made"])
    files = [FileEntry(**entry) for entry in made["files"]]
    return Made(files, rows=made["rows"], metrics=made["metrics"], run=made["run"])
