"""Train an encoder with MoCo v2 on X-rays without labels: the initialisation `moco` of segmentation encoders.

The step takes decoded images and, unless the init is `random`, weights for both encoders. It trains the query encoder,
and writes it without its projection head.

INPUT   images {cxr_id, height, width, pixels} of the training splits, and their manifests for the ids; encoder weights
OUTPUT  weights.safetensors: the query encoder at the last update, with {architecture, normalisation, size, trained_by}
        as JSON under `model` in its metadata. No table; the history of loss and accuracy is in the metrics.
FAN-OUT one training; 0, 1 or num_replicas workers, which share each batch: keys and gradients are added over them
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from chexseg_ray.data.images import content_box
from chexseg_ray.engine.execution import Made, Task
from chexseg_ray.engine.launch import run_training
from chexseg_ray.engine.shards import ImageShards
from chexseg_ray.engine.tables import read_manifest
from chexseg_ray.engine.train import Report, TrainingJob, TrainingRun, Values, job_facts, tenths
from chexseg_ray.errors import InputError
from chexseg_ray.pretraining.moco import MocoBatch, MocoSettings, build_moco, draw_batch, moco_update
from chexseg_ray.stages.encoder import initialise
from chexseg_ray.updates.precision import placed
from chexseg_ray.updates.step import Pass


@dataclass(frozen=True, kw_only=True)
class Settings(MocoSettings):
    """The settings that determine MoCo's training: the step's hashed config.

    The fields that are not listed are those of pretraining.moco.MocoSettings.

    Args:
        train_splits: the splits whose images train.
        batch_size: images of one update.
        learning_rate: Adam's at the start.
        milestones: updates after each of which the learning rate is a tenth of what it was.
        weight_decay: Adam's.
        num_updates: length of the training.
        precision: float32 | bf16, of both encoders' passes.
    """

    train_splits: Sequence[str]
    batch_size: int
    learning_rate: float
    milestones: Sequence[int]
    weight_decay: float
    num_updates: int
    precision: str = "float32"


def make(task: Task) -> Made:
    """Train up to num_updates, and continue from a saved state (both encoders, queue, optimiser) if there is one.

    Args:
        task: the step to make; its inputs are `images_SPLIT` and `manifest_SPLIT` of the splits, and `encoder` unless
            the init is `random`.

    Returns:
        The query encoder's weights; `rows` counts the training images. The metrics are where the initial weights come
        from (`encoder`), and the `history` of losses and accuracies.

    Raises:
        InputError, TransientError: as `train` and run_training.
    """
    settings, resources = Settings(**task.step.config), task.execution.compute.moco
    job = TrainingJob(settings, **job_facts(task, resources, f"moco {settings.architecture}"))
    return run_training(train, job, resources, task.execution, f"moco-{task.step.fingerprint}")


def train(job: TrainingJob[Settings], report: Report) -> None:
    """Run the training loop: Adam, whose learning rate falls to a tenth at each milestone.

    Args:
        job: the training.
        report: takes plain metrics, the last of which are the result.

    Raises:
        InputError: the splits have fewer images than one batch.
        NanLossError: a loss or a weight is not finite.
    """
    settings = job.settings
    run = TrainingRun(job, report, settings.seed)
    model = build_moco(settings)
    _, encoder = initialise(model.query.encoder, job, settings.architecture, settings.normalisation)
    model.key.encoder.load_state_dict(model.query.encoder.state_dict())
    model = placed(model, run.device, settings.precision).train()
    optimiser = torch.optim.Adam(
        model.query.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    progress = run.resume(model, optimiser)
    shards = _shards(job)
    if shards.num_rows < settings.batch_size:
        few = f"{shards.num_rows} training images are fewer than one batch of {settings.batch_size}"
        raise InputError(f"moco: {few}: lower moco.batch_size")
    batches = shards.batches(settings.batch_size, settings.seed, progress.update)

    def on_device(pass_: Pass, *batch: torch.Tensor) -> torch.Tensor:
        """Do one update with the tensors of a MocoBatch on the device; return its loss and accuracy."""
        return moco_update(model, optimiser, MocoBatch(*batch), settings, pass_, run.replica)

    do = run.updates(on_device, optimiser, [model], settings.num_replicas, settings.precision)

    def update(number: int) -> tuple[torch.Tensor, list[str]]:
        """Do one update; return its loss and accuracy, and the cxr_ids of the batch."""
        batch = next(batches)
        passed = sum(number >= milestone for milestone in settings.milestones)
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * 0.1**passed
        boxes = [content_box(*sample.original, settings.size) for sample in batch.samples]
        drawn = draw_batch(torch.from_numpy(batch.pixels), boxes, settings, number, run.replica)
        return do(number, *drawn), batch.ids

    def entry(values: Values) -> tuple[dict[str, float], float]:
        """The history's entry, and no score: the last checkpoint is kept."""
        return {"update": float(progress.update), **values}, math.nan

    def note(values: Values) -> str:
        """What is shown while it trains."""
        return f"loss {values['loss']:.3f}, {values['accuracy']:.0%} found"

    run.train(update, ["loss", "accuracy"], tenths(settings.num_updates), entry, "moco.learning_rate", note)
    facts = {
        "architecture": settings.architecture,
        "normalisation": settings.normalisation,
        "size": settings.size,
        "trained_by": "moco",
    }
    metrics = {"history": progress.history, "encoder": encoder}
    run.finish(model.query.encoder.state_dict(), facts, shards.num_rows, metrics, "moco.learning_rate")


def _shards(job: TrainingJob[Settings]) -> ImageShards:
    """All images of the training splits, each with an empty target, as labels are not used."""
    store, splits = job.attempt.store, job.settings.train_splits
    targets: dict[str, npt.NDArray[np.int8]] = {}
    for split in splits:
        manifest = read_manifest(store, job.inputs[f"manifest_{split}"])
        targets |= dict.fromkeys(manifest["cxr_id"], np.zeros(0, dtype=np.int8))
    return ImageShards(store, [job.inputs[f"images_{split}"] for split in splits], job.settings.size, targets)
