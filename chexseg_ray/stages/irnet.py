"""Train IRNet on the CAMs of the weakly labelled images (paper appendix A.2 and B.1).

The step takes the weak images with their CAMs and image-level labels, and, unless the encoder is `random`, weights for
the frozen ResNet50 trunk. It makes IR labels (confident foreground and background) of the CAMs, and trains the boundary
branch and, if the config asks for it, the displacement branch. Only images with a usable CAM train.

INPUT   of the weak split images {cxr_id, height, width, pixels}, cams {cxr_id, probability[K], cam[K, h, w]} and
        manifest {cxr_id, labels[K]}; encoder weights
OUTPUT  weights.safetensors: trunk and branches, with {displacement, normalisation, size} as JSON under `model` in its
        metadata. No table; the history of the three losses is in the record's metrics.
FAN-OUT one training; 0 or more workers, which share each batch: sums and pair counts are added over them, then divided
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from chexseg_ray.config.upstream import IRNET_ENCODER
from chexseg_ray.data import streams
from chexseg_ray.data.images import content_box
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.engine.devices import to_device
from chexseg_ray.engine.execution import Made, Task
from chexseg_ray.engine.launch import run_training
from chexseg_ray.engine.replicas import Replica
from chexseg_ray.engine.shards import Batch, ImageShards
from chexseg_ray.engine.tables import label_matrix, read_manifest, split_cams
from chexseg_ray.engine.train import WEIGHTS, Report, TrainingJob, TrainingRun, Values, job_facts, tenths
from chexseg_ray.engine.training_state import from_safetensors
from chexseg_ray.errors import InputError
from chexseg_ray.pseudo.gating import open_gates
from chexseg_ray.pseudo.ir_augmentation import Crop
from chexseg_ray.pseudo.ir_labels import FOREGROUND
from chexseg_ray.pseudo.irnet import STRIDE, DisplacementBranch, IRNet, irnet_update, polynomial_decay
from chexseg_ray.stages.encoder import initialise
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store

LOSSES = ("boundary", "foreground_displacement", "background_displacement")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How IRNet's training samples are made.

    Args:
        size: S, pixels of a side.
        foreground: share of a CAM's maximum above which a cell is foreground.
        background: share of a CAM's maximum up to which a cell is background.
        rescale: the smallest and the largest scale of an image.
        flip: whether half of the images are mirrored.
        seed: the seed of weights, batches and crops.
    """

    size: int
    foreground: float
    background: float
    rescale: Sequence[float]
    flip: bool
    seed: int


@dataclass(frozen=True, kw_only=True)
class Settings(Sampling):
    """The settings that determine IRNet's training: the step's hashed config.

    The fields that are not listed are those of Sampling and of config.upstream.IrnetConfig.

    Args:
        pathologies: K names, in channel order.
        gate: label | probability | none, which images may show a pathology, as in pseudo.gating.open_gates.
        gate_probability: in [0, 1]; NaN unless the gate is `probability`.
        normalisation: the input statistics for encoder `random`; empty where weights bring their own.
    """

    pathologies: Sequence[str]
    gate: str
    gate_probability: float = math.nan
    normalisation: str = ""
    radius: int
    displacement: bool
    loss_weights: str
    batch_size: int
    learning_rate: float
    decay_power: float
    weight_decay: float
    num_updates: int


def make(task: Task) -> Made:
    """Train up to num_updates, and continue from a saved state if there is one.

    Args:
        task: the step to make; its inputs are `images_weak`, `manifest_weak` and `cams`, and `encoder` unless the trunk
            begins with random weights.

    Returns:
        The weights; `rows` counts the images that trained. The metrics are where the trunk's weights come from
        (`encoder`), the number of images with and without a usable CAM (`images_used`, `images_without_target`), and
        the `history` of the three losses.

    Raises:
        InputError, TransientError: as `train` and run_training.
    """
    settings, resources = Settings(**task.step.config), task.execution.compute.irnet
    job = TrainingJob(settings, **job_facts(task, resources, "irnet"))
    return run_training(train, job, resources, task.execution, f"irnet-{task.step.fingerprint}")


def train(job: TrainingJob[Settings], report: Report) -> None:
    """Run the training loop: SGD without momentum, polynomial decay (paper appendix B.1).

    Args:
        job: the training.
        report: takes plain metrics, the last of which are the result.

    Raises:
        InputError: fewer weak images have a usable CAM than one batch needs.
        NanLossError: a loss or a weight is not finite.
    """
    settings = job.settings
    run = TrainingRun(job, report, settings.seed)
    model = IRNet(settings.displacement)
    layers = model.trunk.layers
    normalisation, encoder = initialise(layers, job, IRNET_ENCODER, settings.normalisation, settings.pathologies)
    model = model.to(run.device).train()
    rate = settings.learning_rate
    optimiser = torch.optim.SGD(model.parameter_groups(rate), lr=rate, weight_decay=settings.weight_decay)
    progress = run.resume(model.branches, optimiser)
    targets = _usable_targets(job)
    shards = ImageShards(job.attempt.store, [job.inputs["images_weak"]], settings.size, targets, job.inputs["cams"])
    if shards.num_rows < settings.batch_size:
        few = f"{shards.num_rows} weak images show a pathology, fewer than one batch of {settings.batch_size}"
        raise InputError(f"irnet: {few}: lower irnet.batch_size, or open the gate (pseudo_masks.gate)")
    batches = shards.batches(settings.batch_size, settings.seed, progress.update)

    def update(number: int) -> tuple[torch.Tensor, list[str]]:
        """Do one update; return its three losses and the cxr_ids of the batch."""
        batch = next(batches)
        decay = polynomial_decay(number, settings.num_updates, settings.decay_power)
        for group, scale in zip(optimiser.param_groups, (1, 10), strict=False):  # as IRNet.parameter_groups
            group["lr"] = rate * scale * decay
        sample = training_sample(batch, settings, number, run.replica)
        pixels, labels = (to_device(tensor, run.device) for tensor in sample)
        losses = irnet_update(
            model, optimiser, pixels, labels, settings.radius, settings.loss_weights, normalisation, run.sum_
        )
        return losses, batch.ids

    def entry(values: Values) -> tuple[dict[str, float], float]:
        """The history's entry, and no score: the last checkpoint is kept."""
        return {"update": float(progress.update), **values}, math.nan

    def note(values: Values) -> str:
        """What is shown while it trains."""
        return f"boundary loss {values['boundary']:.3f}"

    run.train(update, LOSSES, tenths(settings.num_updates), entry, "irnet.learning_rate", note)
    if settings.displacement:
        set_mean_displacement(model, shards, settings, normalisation, run.device, run.replica)
    metrics = {
        "history": progress.history,
        "encoder": encoder,
        "images_used": shards.num_rows,
        "images_without_target": job.inputs["images_weak"].rows - shards.num_rows,
    }
    facts = {"displacement": settings.displacement, "normalisation": normalisation, "size": settings.size}
    run.finish(model.state_dict(), facts, shards.num_rows, metrics, "irnet.learning_rate")


def _usable_targets(job: TrainingJob[Settings]) -> dict[str, npt.NDArray[np.int8]]:
    """Find the pathologies of each weak image that IRNet can learn from: the gate is open, and the CAM is not all zero.

    Args:
        job: the training.

    Returns:
        int8 [K] by cxr_id, 1 for each such pathology and 0 elsewhere; images without any are left out.
    """
    settings, store, cams = job.settings, job.attempt.store, job.inputs["cams"]
    manifest = read_manifest(store, job.inputs["manifest_weak"])
    weak_ids = list(manifest["cxr_id"])
    labels = label_matrix(manifest, weak_ids)
    row_of = {cxr_id: row for row, cxr_id in enumerate(weak_ids)}
    usable: dict[str, npt.NDArray[np.int8]] = {}
    for part in cams.paths("cams/weak/"):
        table, maps = split_cams(store.read_table(cams, part))
        ids = table.column("cxr_id").to_pylist()
        probability = np.array(table.column("probability").to_pylist(), dtype=np.float32)
        part_labels = labels[[row_of[cxr_id] for cxr_id in ids]]
        gates = open_gates(part_labels, probability, settings.gate, settings.gate_probability)
        gates &= maps.max(axis=(2, 3)) > 0
        for cxr_id, gate in zip(ids, gates, strict=True):
            if gate.any():
                usable[cxr_id] = gate.astype(np.int8)
    return usable


def training_sample(
    batch: Batch, sampling: Sampling, update: int, replica: Replica
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the training sample of this replica's share of a batch, as a function of (batch, seed, update).

    Args:
        batch: the whole batch, with CAMs.
        sampling: how samples are made.
        update: u >= 0, the batch's number.
        replica: this process.

    Returns:
        Pixels uint8 [b, S, S] and IR labels uint8 [b, K, S / 4, S / 4], in the order of the share's images.
    """
    size = sampling.size
    rng = np.random.default_rng([sampling.seed, streams.IRNET_CROP, update])
    low, high = sampling.rescale
    crops = [Crop.draw(rng, size // STRIDE, low, high, sampling.flip) for _ in batch.samples]
    share = replica.share(len(crops))
    pixels, labels = [], []
    for sample, crop in zip(batch.samples[share], crops[share], strict=True):
        assert sample.cams is not None
        gate, box = sample.target == 1, content_box(*sample.original, size)
        pixels.append(crop.pixels(sample.pixels))
        labels.append(crop.labels(sample.cams, gate, box, size, sampling.foreground, sampling.background))
    return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(labels))


def set_mean_displacement(
    model: IRNet, shards: ImageShards, settings: Settings, normalisation: str, device: torch.device, replica: Replica
) -> None:
    """Set the displacement branch's mean shift to the mean of D over the confident foreground cells of all images.

    Eq. 3 determines D only up to a constant. The displacements from an instance's cells to its centroid add up to zero,
    so the mean of D over the foreground is that constant. (The irn code takes the mean over all cells.)

    Args:
        model: the network, on the device; its branch `displacement` gets the mean.
        shards: the training images.
        settings: the training's settings.
        normalisation: the statistics of the trunk's input.
        device: where the model is.
        replica: this process; processes share the images.
    """
    branch = model.branches["displacement"]
    assert isinstance(branch, DisplacementBranch)
    unaugmented = replace(settings, rescale=(1.0, 1.0), flip=False)
    total = torch.zeros(3, dtype=torch.float64, device=device)  # the two sums of D, and the number of cells
    model.eval()
    branch.mean.zero_()
    for number, batch in enumerate(shards.in_order(settings.batch_size)):
        if number % replica.count != replica.rank:
            continue
        pixels, labels = training_sample(batch, unaugmented, 0, Replica(0, 1))
        with torch.no_grad():
            _, field = model(network_input(pixels.to(device), normalisation))
        cells = (labels.to(device) == FOREGROUND).any(dim=1)
        total[:2] += field.permute(0, 2, 3, 1)[cells].sum(dim=0, dtype=torch.float64)
        total[2] += cells.sum()
    replica.sum_([total])
    branch.mean.copy_(total[:2] / total[2].clamp(min=1))
    model.train()


def load_irnet(store: Store, record: Record) -> tuple[IRNet, dict[str, Any]]:
    """Load a trained IRNet.

    Args:
        store: holds the record's files.
        record: the irnet record.

    Returns:
        The network in eval mode on the CPU, and {displacement, normalisation, size}.
    """
    tensors, metadata = from_safetensors(store.read(record, WEIGHTS))
    facts: dict[str, Any] = json.loads(metadata["model"])
    model = IRNet(facts["displacement"])
    model.load_state_dict(tensors)
    model.eval()
    return model, facts
