"""Train an image-level classifier (for CAMs, and as an encoder's initialisation).

INPUT   images {cxr_id, pixels} and manifest labels of the training and the validation splits; with another init than random the trunk's weights
OUTPUT  weights.safetensors (best by mean AUROC of the selection pathologies; normalisation and pathologies in its metadata)
FAN-OUT one training; 0, 1 or num_replicas workers, which share each batch and the validation
"""

import json
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from chexseg_ray.artifacts import FileEntry, Record
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.errors import InputError
from chexseg_ray.evaluation.auroc import auroc
from chexseg_ray.progress import track
from chexseg_ray.pseudo.classifier import IGNORED, build_classifier, masked_loss, probabilities, training_targets, trunk_of
from chexseg_ray.stages.encoder import initialise
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.replicas import Replica
from chexseg_ray.stages.shards import Batch, ImageShards
from chexseg_ray.stages.tables import label_matrix, read_manifest
from chexseg_ray.stages.train import NanLossError, Report, TrainingJob, begin, require_finite, result, run_training
from chexseg_ray.stages.training_state import Progress, to_safetensors


def make(task: Task) -> Made:
    """Train to num_updates, going on from a saved state when there is one."""
    resources = task.execution.classifier
    return run_training(train, TrainingJob.of(task, resources), resources, task.execution, f"classifier-{task.step.fingerprint}")


def _shards(job: TrainingJob, splits: list[str], for_training: bool) -> tuple[ImageShards, dict[str, npt.NDArray[np.int8]]]:
    config = job.config
    uncertainty, blanks = (config["uncertainty"], config["blanks"]) if for_training else ("ignore", "ignore")
    store = job.attempt.store
    targets: dict[str, npt.NDArray[np.int8]] = {}
    present = [split for split in splits if f"images_{split}" in job.inputs]
    for split in present:
        manifest = read_manifest(store, job.inputs[f"manifest_{split}"])
        ids = list(manifest["cxr_id"])
        targets |= dict(zip(ids, training_targets(label_matrix(manifest, ids), uncertainty, blanks), strict=True))
    return ImageShards(store, [job.inputs[f"images_{split}"] for split in present], config["size"], targets), targets


def train(job: TrainingJob, report: Report) -> None:
    """The training loop (Adam, constant learning rate, masked cross-entropy)."""
    config, start = job.config, time.monotonic()
    device = begin(config["seed"], job.threads)
    replica = Replica.here()
    model = build_classifier(config["architecture"], len(config["pathologies"]), config["uncertainty"])
    _, encoder = initialise(trunk_of(model), job, config["architecture"], config["normalisation"])
    model = model.to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=config["learning_rate"], fused=True)
    keeper = job.keeper(replica)
    progress = keeper.load(model, optimiser)
    shards, targets = _shards(job, config["train_splits"], for_training=True)
    validation, _ = _shards(job, config["validation_splits"], for_training=False)
    if shards.num_rows < config["batch_size"]:
        raise InputError(f"{config['architecture']}: {shards.num_rows} training images are fewer than one batch of {config['batch_size']}")
    total = config["num_updates"]
    telemetry = job.telemetry(replica, progress.update)
    show = track(f"classifier {config['architecture']}: updates", total)
    model.train()
    batches = shards.batches(config["batch_size"], config["seed"], progress.update)
    while progress.update < total:
        batch = next(batches)
        value = classifier_update(model, optimiser, batch, config, progress.update, replica, device)
        if not math.isfinite(value):
            raise NanLossError(f"classifier update {progress.update}: loss is {value}, images {', '.join(batch.ids)}: lower its learning_rate")
        progress.update += 1
        if progress.update % config["validate_every"] == 0 or progress.update == total:
            entry = _validate(model, validation, config, device, replica)
            progress.history.append({"update": float(progress.update), "loss": value, **entry})
            telemetry.recorded(progress.history[-1])
            progress.keep_if_best(model, entry.get("selection", math.nan))
        show(progress.update, f"loss {value:.3f}")
        telemetry.updated(progress.update)
        keeper.save_if_due(model, optimiser, progress)
    run = job.run_facts(device, replica, start)
    metrics = {"encoder": encoder, "positive_targets": _positives(config["pathologies"], targets)}
    files = _finish(job, config, model, progress, replica, metrics)
    report(result(files, shards.num_rows, metrics, run))


def classifier_update(
    model: nn.Module, optimiser: torch.optim.Optimizer, batch: Batch, config: Mapping[str, Any], update: int, replica: Replica, device: torch.device
) -> float:
    """One step on one batch, of which this process takes its share. Returns the whole batch's loss; when it is not finite, no weight has changed."""
    own = replica.share(len(batch.samples))
    targets = torch.tensor(batch.targets)
    optimiser.zero_grad(set_to_none=True)
    inputs = network_input(torch.tensor(batch.pixels[own]).to(device), config["normalisation"])
    logits = replica.forward(model, inputs, config["num_replicas"], (config["seed"], update))
    loss = masked_loss(logits, targets[own].to(device), int((targets != IGNORED).sum()))
    whole = loss.detach().clone()
    replica.sum_([whole])
    if math.isfinite(value := float(whole)):
        loss.backward()  # type: ignore[no-untyped-call]
        replica.sum_(p.grad for p in model.parameters() if p.grad is not None)
        optimiser.step()
    return value


def _validate(model: nn.Module, shards: ImageShards, config: Mapping[str, Any], device: torch.device, replica: Replica) -> dict[str, float]:
    """AUROC of each pathology that has one on the validation images, and the selection pathologies' mean. Processes share the batches."""
    if shards.num_rows == 0:
        return {}
    model.eval()
    count, start = len(config["pathologies"]), 0
    scores, labels = torch.zeros(shards.num_rows, count), np.empty((shards.num_rows, count))
    for number, batch in enumerate(shards.in_order(64)):
        rows = slice(start, start + len(batch.samples))
        start = rows.stop
        labels[rows] = np.where(batch.targets == IGNORED, np.nan, batch.targets)
        if number % replica.count == replica.rank:
            with torch.no_grad():
                logits = model(network_input(torch.tensor(batch.pixels).to(device), config["normalisation"]))
            scores[rows] = probabilities(logits, count).float().cpu()
    scores = scores.to(device) if replica.count > 1 else scores
    replica.sum_([scores])
    model.train()
    areas = dict(zip(config["pathologies"], auroc(scores.cpu().numpy(), labels), strict=True))
    defined = {f"auroc {name}": float(area) for name, area in areas.items() if not math.isnan(area)}
    chosen = [areas[name] for name in config["selection_pathologies"] if not math.isnan(areas[name])]
    return defined | ({"selection": float(np.mean(chosen))} if chosen else {})


def _positives(pathologies: list[str], targets: dict[str, npt.NDArray[np.int8]]) -> dict[str, int]:
    return dict(zip(pathologies, (np.stack(list(targets.values())) == 1).sum(axis=0).tolist(), strict=True))


def _finish(
    job: TrainingJob, config: Mapping[str, Any], model: nn.Module, progress: Progress, replica: Replica, metrics: dict[str, Any]
) -> list[FileEntry]:
    """Write the chosen weights; rank 0 alone. Adds to the metrics how they were chosen."""
    weights = progress.best or dict(model.state_dict())
    require_finite(f"classifier {config['architecture']}:", weights, progress.update, "its learning_rate")
    metrics |= {
        "selected": "best" if progress.best else "last (no AUROC is defined on the validation images)",
        "best_update": progress.best_update if progress.best else progress.update,
        "validation_auroc": progress.best_score if progress.best else None,
        "history": progress.history,
    }
    if replica.rank:
        return []
    metadata = {k: config[k] for k in ("architecture", "normalisation", "pathologies", "uncertainty", "size")}
    return [job.attempt.write("weights.safetensors", to_safetensors(weights, {"model": json.dumps(metadata)}))]


def load_classifier(attempt_store: Any, record: Record) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network in eval mode on the CPU, and {architecture, normalisation, pathologies, uncertainty, size}."""
    from chexseg_ray.stages.training_state import from_safetensors

    tensors, metadata = from_safetensors(attempt_store.read(record, "weights.safetensors"))
    facts: dict[str, Any] = json.loads(metadata["model"])
    model = build_classifier(facts["architecture"], len(facts["pathologies"]), facts["uncertainty"])
    model.load_state_dict(tensors)
    return model.eval(), facts
