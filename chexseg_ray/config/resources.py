"""The section `compute`: what each stage requests from Ray.

It describes where and how fast a study runs, and changes no result and no address, so every field has a default.
"""

from typing import Annotated, Literal

from pydantic import Field

from chexseg_ray.config.fields import Count, NotNegative, Positive, Section, Seed, for_weak_n

GROUP_DRIVER_CPUS = 0.01  # a trial that drives a worker group must not hold the CPUs that its workers wait for

Cpus = Annotated[float, Field(gt=0)]
Bundle = tuple[float, float]  # CPUs and GPUs that must be free together on one node


class TaskCompute(Section):
    """What each Ray task of a stage requests."""

    num_cpus: Cpus = 1.0
    """CPUs of one task."""


class ActorCompute(Section):
    """What each actor of a Ray Data stage requests, and how many there may be."""

    num_cpus: Cpus = 1.0
    """CPUs, and threads, of one actor."""
    num_gpus: NotNegative = 0.0
    """GPUs of one actor; a fraction shares a GPU."""
    min_actors: Positive = 1
    """Number of actors that the stage waits for before it starts."""
    max_actors: Positive = 2
    """Number of actors that it uses if the cluster has room."""

    @property
    def threads(self) -> int:
        """Threads of one actor."""
        return max(1, int(self.num_cpus))

    @property
    def bundle(self) -> Bundle:
        """CPUs and GPUs of one actor."""
        return self.num_cpus, self.num_gpus


class PredictionCompute(ActorCompute):
    """What the prediction of the test images with the chosen models requests."""

    min_actors: Count = 0
    """Number of actors that the stage waits for before it starts."""
    max_actors: Count = 0
    """Number of actors that it uses if the cluster has room; 0 predicts in the driver process."""


class WorkerCompute(Section):
    """What one training requests."""

    num_workers: Count = 0
    """Worker processes that share each batch; 0 trains in the calling process, without a worker group."""
    num_cpus: Cpus = 1.0
    """CPUs of one worker (of the trial's process, if a trial trains without workers)."""
    num_gpus: NotNegative = 0.0
    """GPUs of one worker; a fraction shares a GPU."""
    threads: Positive = 2
    """Threads of torch in one worker."""

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """CPUs and GPUs of each worker, all needed at the same time; empty if the driver trains."""
        return ((self.num_cpus, self.num_gpus),) * self.num_workers

    @property
    def trial_bundle(self) -> Bundle:
        """CPUs and GPUs of the trial's own process: almost nothing if a worker group trains."""
        return (GROUP_DRIVER_CPUS, 0.0) if self.num_workers else (self.num_cpus, self.num_gpus)

    @property
    def trial_bundles(self) -> tuple[Bundle, ...]:
        """CPUs and GPUs of the workers and of the trial's own process, all needed at the same time."""
        return (*self.bundles, self.trial_bundle)


CpusByWeakN = Annotated[dict[Seed, Cpus], Field(strict=False)]
GpusByWeakN = Annotated[dict[Seed, NotNegative], Field(strict=False)]
WorkersByWeakN = Annotated[dict[Seed, Count], Field(strict=False)]


class TrialCompute(Section):
    """What each trial of the sweep requests: numbers, or mappings from weak_n (p = 1 takes the smallest's)."""

    num_workers: Count | WorkersByWeakN = 0
    """Worker processes that share each batch; 0 trains in the trial's own process."""
    num_cpus: Cpus | CpusByWeakN = 1.0
    """CPUs of one worker, or of the trial."""
    num_gpus: NotNegative | GpusByWeakN = 0.0
    """GPUs of one worker, or of the trial; a fraction shares a GPU."""
    threads: Positive = 1
    """Threads of torch in one worker, or in the trial."""

    def of(self, weak_n: int) -> WorkerCompute:
        """Return what the trial of a point with `weak_n` weak images requests."""
        workers, cpus, gpus = (for_weak_n(value, weak_n) for value in (self.num_workers, self.num_cpus, self.num_gpus))
        return WorkerCompute(num_workers=int(workers), num_cpus=cpus, num_gpus=gpus, threads=self.threads)


class RatesConfig(Section):
    """The speeds and prices from which the plan estimates time and cost."""

    gpu_flops_per_second: Cpus = 1.0e13
    """Sustained FLOP/s of one GPU in the training of a segmentation network; an H100 with CUDA graphs reached 4.8e13.
    Other networks' times follow from it by their measured ratios."""
    cpu_flops_per_second: Cpus = 5.0e10
    """Sustained FLOP/s of one CPU thread."""
    decode_seconds: Cpus = 0.06
    """Seconds that one CPU takes to decode an X-ray."""
    gpu_hour: NotNegative = 0.0
    """Price of a GPU-hour."""
    cpu_hour: NotNegative = 0.0
    """Price of a CPU-hour."""
    currency: str = "USD"
    """Currency of the prices."""
    images: Annotated[dict[Literal["weak", "expert_train", "validation", "test"], Count], Field(strict=False)] = Field(
        default_factory=dict
    )
    """Number of images of a split; needed only if the data are not on the machine that plans."""


class NodeKind(Section):
    """A kind of node that the cluster's autoscaler may add."""

    num_cpus: Cpus
    """CPUs of one node."""
    num_gpus: NotNegative
    """GPUs of one node."""
    max_nodes: Positive
    """How many nodes of the kind there may be."""


class ComputeConfig(Section):
    """Where and how fast the study runs; changes no result and no address."""

    images: TaskCompute = TaskCompute()
    """Decoding of X-rays, drawing of phantoms, and reading of another reader's masks."""
    pseudo_masks: TaskCompute = TaskCompute()
    """Making of pseudo masks from maps."""
    cams: ActorCompute = ActorCompute()
    """Grad-CAM inference."""
    classifier: WorkerCompute = WorkerCompute()
    """Training of the two classifiers."""
    moco: WorkerCompute = WorkerCompute()
    """Training of MoCo."""
    irnet: WorkerCompute = WorkerCompute()
    """Training of IRNet."""
    propagation: ActorCompute = ActorCompute()
    """Propagation of the CAMs with IRNet."""
    segmentation: TrialCompute = TrialCompute()
    """Each trial of the sweep: a training and its evaluation."""
    prediction: PredictionCompute = PredictionCompute()
    """Prediction of the test images with the chosen models."""
    max_failures: Annotated[int, Field(ge=-1)] = 2
    """How often a training may start again after its process or node was lost; -1: no limit."""
    state_seconds: NotNegative = 30.0
    """Seconds between two saved states of a training."""
    cuda_graphs: bool = False
    """Whether each update of a training is one CUDA graph, where a GPU trains by one process and one replica: up to
    three times as fast where the host is the bottleneck. IRNet's updates are none."""
    deterministic: bool = False
    """Whether trainings and inference on a GPU use only kernels that give the same bytes in every run; slower. On a CPU
    they always do."""
    rates: RatesConfig = RatesConfig()
    """Speeds and prices for the plan's estimates."""
    dashboard: bool = False
    """Whether a local Ray starts its dashboard, on 127.0.0.1:8265."""
    autoscaling: Annotated[tuple[NodeKind, ...], Field(strict=False)] = ()
    """The nodes that the cluster's autoscaler may add, because Ray does not report them; a cluster that `ray up` made
    needs no entry."""
    shared_folders: bool = False
    """Whether every node of the cluster has the folders store.root and data.root (NFS, Lustre)."""

    def of(self, section: str) -> TaskCompute | ActorCompute | WorkerCompute | TrialCompute | None:
        """Return the section of that name, such as `cams`; None for the empty name."""
        if not section:
            return None
        found: TaskCompute | ActorCompute | WorkerCompute | TrialCompute = getattr(self, section)
        return found
