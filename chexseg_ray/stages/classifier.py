"""Train an image-level classifier: for CAMs, or as the initialisation `chexpert` of segmentation encoders.

The step takes decoded images with their image-level labels, and, unless the init is `random`, weights for the trunk. It
trains a multi-label network (paper section 3.3.1), and keeps the checkpoint with the best mean AUROC of the selection
pathologies on the validation splits.

INPUT   images {cxr_id, pixels} and manifest {cxr_id, labels[K]} of the training and validation splits; trunk weights
OUTPUT  weights.safetensors: the kept checkpoint, with {architecture, normalisation, pathologies, uncertainty, size} as
        JSON under `model` in its metadata. No table; the history of losses and AUROCs is in the record's metrics.
FAN-OUT one training; 0, 1 or num_replicas workers, which share each batch and the validation
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from chexseg_ray.data.normalisation import network_input
from chexseg_ray.engine.execution import Made, Task
from chexseg_ray.engine.launch import run_training
from chexseg_ray.engine.replicas import Replica
from chexseg_ray.engine.shards import ImageShards
from chexseg_ray.engine.tables import label_matrix, read_manifest
from chexseg_ray.engine.train import WEIGHTS, Report, TrainingJob, TrainingRun, Values, job_facts
from chexseg_ray.engine.training_state import from_safetensors
from chexseg_ray.errors import InputError
from chexseg_ray.evaluation.auroc import auroc
from chexseg_ray.pseudo.classifier import (
    IGNORED,
    build_classifier,
    classifier_update,
    probabilities,
    training_targets,
    trunk_of,
)
from chexseg_ray.stages.encoder import initialise
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store
from chexseg_ray.updates.precision import placed
from chexseg_ray.updates.step import Pass

Targets = dict[str, npt.NDArray[np.int8]]  # training targets [K] by cxr_id
_VALIDATION_BATCH = 64  # images of a forward pass in validation, at most


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that determine a classifier's training: the step's hashed config.

    The fields that are not listed are those of config.upstream.EncoderClassifierConfig.

    Args:
        architecture: densenet121 | resnet18 of torchvision, or an encoder of smp.
        pathologies: K names, in channel order.
        size: S, pixels of a side.
    """

    architecture: str
    pathologies: Sequence[str]
    size: int
    uncertainty: str
    blanks: str
    normalisation: str
    train_splits: Sequence[str]
    validation_splits: Sequence[str]
    selection_pathologies: Sequence[str]
    batch_size: int
    num_replicas: int
    precision: str = "float32"
    learning_rate: float
    num_updates: int
    validate_every: int
    seed: int


def make(task: Task) -> Made:
    """Train up to num_updates, and continue from a saved state if there is one.

    Args:
        task: the step to make; its inputs are `images_SPLIT` and `manifest_SPLIT` of the splits, and `encoder` unless
            the init is `random`.

    Returns:
        The weights; `rows` counts the training images. The metrics are where the trunk's weights come from (`encoder`),
        the images whose target is 1 by pathology (`positive_targets`), the checkpoint that was kept (`selected`,
        `best_update`, `validation_auroc`), and the `history` of losses and AUROCs.

    Raises:
        InputError, TransientError: as `train` and run_training.
    """
    settings, resources = Settings(**task.step.config), task.execution.compute.classifier
    job = TrainingJob(settings, **job_facts(task, resources, f"classifier {settings.architecture}"))
    return run_training(train, job, resources, task.execution, f"classifier-{task.step.fingerprint}")


def train(job: TrainingJob[Settings], report: Report) -> None:
    """Run the training loop: Adam with a constant learning rate on the masked cross-entropy.

    Args:
        job: the training.
        report: takes plain metrics, the last of which are the result.

    Raises:
        InputError: the training splits have fewer images than one batch.
        NanLossError: a loss or a weight is not finite.
    """
    settings = job.settings
    run = TrainingRun(job, report, settings.seed)
    model = build_classifier(settings.architecture, len(settings.pathologies), settings.uncertainty)
    trunk = trunk_of(model)
    _, encoder = initialise(trunk, job, settings.architecture, settings.normalisation, settings.pathologies)
    model = placed(model, run.device, settings.precision)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    progress = run.resume(model, optimiser)
    shards, targets = _shards(job, settings.train_splits, settings.uncertainty, settings.blanks)
    validation, _ = _shards(job, settings.validation_splits, "ignore", "ignore")
    if shards.num_rows < settings.batch_size:
        few = f"{shards.num_rows} training images are fewer than one batch of {settings.batch_size}"
        raise InputError(f"{settings.architecture}: {few}: lower its batch_size, or name more splits to train on")
    model.train()
    batches = shards.batches(settings.batch_size, settings.seed, progress.update)

    def on_device(pass_: Pass, pixels: torch.Tensor, targets: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """Do one update with this process's share of a batch on the device; return its loss."""
        forward = partial(pass_, model)
        return classifier_update(model, optimiser, pixels, targets, count, settings.normalisation, forward, run.sum_)

    do = run.updates(on_device, optimiser, [model], settings.num_replicas, settings.precision)

    def update(number: int) -> tuple[torch.Tensor, list[str]]:
        """Do one update; return its loss and the cxr_ids of the batch."""
        batch = next(batches)
        share, targets = run.replica.share(len(batch.samples)), torch.tensor(batch.targets)
        return do(number, torch.tensor(batch.pixels[share]), targets[share], (targets != IGNORED).sum()), batch.ids

    def validate(values: Values) -> tuple[dict[str, float], float]:
        """The history's entry and the score that chooses the checkpoint, NaN where no AUROC is defined."""
        areas = validation_areas(model, validation, settings, run.device, run.replica)
        return {"update": float(progress.update), **values, **areas}, areas.get("selection", math.nan)

    def note(values: Values) -> str:
        """What is shown while it trains."""
        return f"loss {values['loss']:.3f}"

    due = {*range(settings.validate_every, settings.num_updates, settings.validate_every), settings.num_updates}
    run.train(update, ["loss"], due, validate, "its learning_rate", note)
    metrics = {
        "encoder": encoder,
        "positive_targets": _count_positives(settings.pathologies, targets),
        "selected": "best" if progress.best else "last (no AUROC is defined on the validation images)",
        "best_update": progress.best_update if progress.best else progress.update,
        "validation_auroc": progress.best_score if progress.best else None,
        "history": progress.history,
    }
    names = ("architecture", "normalisation", "pathologies", "uncertainty", "size")
    facts = {name: getattr(settings, name) for name in names}
    run.finish(progress.best or dict(model.state_dict()), facts, shards.num_rows, metrics, "its learning_rate")


def _shards(
    job: TrainingJob[Settings], splits: Sequence[str], uncertainty: str, blanks: str
) -> tuple[ImageShards, Targets]:
    """The images of the given splits, and their targets. A split that the study does not have is left out.

    Args:
        job: the training.
        splits: names of splits.
        uncertainty: what an uncertain label becomes.
        blanks: what a blank label becomes.
    """
    store = job.attempt.store
    targets: Targets = {}
    present = [split for split in splits if f"images_{split}" in job.inputs]
    for split in present:
        manifest = read_manifest(store, job.inputs[f"manifest_{split}"])
        ids = list(manifest["cxr_id"])
        targets |= dict(zip(ids, training_targets(label_matrix(manifest, ids), uncertainty, blanks), strict=True))
    records = [job.inputs[f"images_{split}"] for split in present]
    return ImageShards(store, records, job.settings.size, targets), targets


def validation_areas(
    model: nn.Module, shards: ImageShards, settings: Settings, device: torch.device, replica: Replica
) -> dict[str, float]:
    """Compute the AUROC of each pathology on the validation images. Processes share the batches.

    Args:
        model: the network, in train mode before and after.
        shards: the validation images.
        settings: the training's settings.
        device: where the model is.
        replica: this process.

    Returns:
        `auroc NAME` in [0, 1] of each pathology that has both positive and negative images, and `selection`, the mean
        AUROC of the selection pathologies among them, if there is one.
    """
    if shards.num_rows == 0:
        return {}
    model.eval()
    count = len(settings.pathologies)
    scores, labels = torch.zeros(shards.num_rows, count), np.empty((shards.num_rows, count))
    start = 0
    for number, batch in enumerate(shards.in_order(_VALIDATION_BATCH)):
        rows = slice(start, start + len(batch.samples))
        start = rows.stop
        labels[rows] = np.where(batch.targets == IGNORED, np.nan, batch.targets)
        if number % replica.count == replica.rank:
            with torch.no_grad():
                logits = model(network_input(torch.tensor(batch.pixels).to(device), settings.normalisation))
            scores[rows] = probabilities(logits, count).float().cpu()
    if replica.count > 1:
        scores = scores.to(device)  # where processes add tensors up; rows of other processes' batches are zeros
    replica.sum_([scores])
    model.train()
    areas = dict(zip(settings.pathologies, auroc(scores.cpu().numpy(), labels), strict=True))
    found = {f"auroc {name}": float(area) for name, area in areas.items() if not math.isnan(area)}
    selected = [areas[name] for name in settings.selection_pathologies if not math.isnan(areas[name])]
    if selected:
        found["selection"] = float(np.mean(selected))
    return found


def _count_positives(pathologies: Sequence[str], targets: Targets) -> dict[str, int]:
    """The number of images whose target is 1, by pathology."""
    counts = (np.stack(list(targets.values())) == 1).sum(axis=0)
    return dict(zip(pathologies, counts.tolist(), strict=True))


def load_classifier(store: Store, record: Record) -> tuple[nn.Module, dict[str, Any]]:
    """Load a trained classifier.

    Args:
        store: holds the record's files.
        record: the classifier's record.

    Returns:
        The network in eval mode on the CPU, and {architecture, normalisation, pathologies, uncertainty, size}.
    """
    tensors, metadata = from_safetensors(store.read(record, WEIGHTS))
    facts: dict[str, Any] = json.loads(metadata["model"])
    model = build_classifier(facts["architecture"], len(facts["pathologies"]), facts["uncertainty"])
    model.load_state_dict(tensors)
    return model.eval(), facts
