"""Train an image-level classifier (for CAMs, and as an encoder's initialisation).

INPUT   images {cxr_id, pixels} and manifest labels of the training and the validation splits
OUTPUT  weights.safetensors (best by mean AUROC of the selection pathologies; normalisation and pathologies in its metadata)
FAN-OUT one training; 0 or 1 workers
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

from chexseg_ray.artifacts import Record
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.errors import InputError
from chexseg_ray.evaluation.auroc import auroc
from chexseg_ray.progress import track
from chexseg_ray.pseudo.classifier import IGNORED, build_classifier, masked_loss, probabilities, training_targets
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.shards import ImageShards
from chexseg_ray.stages.tables import label_matrix, read_manifest
from chexseg_ray.stages.train import NanLossError, Report, TrainingJob, begin, require_finite, result, run_training
from chexseg_ray.stages.training_state import Progress, StateKeeper, to_safetensors


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
    model = build_classifier(config["architecture"], len(config["pathologies"]), config["uncertainty"]).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=config["learning_rate"], fused=True)
    keeper = StateKeeper(job.attempt, job.state_seconds)
    progress = keeper.load(model, optimiser)
    shards, targets = _shards(job, config["train_splits"], for_training=True)
    validation, _ = _shards(job, config["validation_splits"], for_training=False)
    if shards.num_rows < config["batch_size"]:
        raise InputError(f"{config['architecture']}: {shards.num_rows} training images are fewer than one batch of {config['batch_size']}")
    total = config["num_updates"]
    show = track(f"classifier {config['architecture']}: updates", total)
    model.train()
    batches = shards.batches(config["batch_size"], config["seed"], progress.update)
    while progress.update < total:
        batch = next(batches)
        torch.manual_seed((config["seed"] << 24) + progress.update)
        optimiser.zero_grad(set_to_none=True)
        logits = model(network_input(torch.tensor(batch.pixels).to(device), config["normalisation"]))
        loss = masked_loss(logits, torch.tensor(batch.targets).to(device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NanLossError(f"classifier update {progress.update}: loss is {value}, images {', '.join(batch.ids)}: lower its learning_rate")
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        progress.update += 1
        if progress.update % config["validate_every"] == 0 or progress.update == total:
            entry = _validate(model, validation, config, device)
            progress.history.append({"update": float(progress.update), "loss": value, **entry})
            progress.keep_if_best(model, entry.get("selection", math.nan))
        show(progress.update, f"loss {value:.3f}")
        keeper.save_if_due(model, optimiser, progress)
    _finish(job, model, progress, shards.num_rows, targets, device, report, time.monotonic() - start)


def _validate(model: nn.Module, shards: ImageShards, config: Mapping[str, Any], device: torch.device) -> dict[str, float]:
    """AUROC of each pathology that has one on the validation images, and the selection pathologies' mean."""
    if shards.num_rows == 0:
        return {}
    model.eval()
    scores, labels = [], []
    with torch.no_grad():
        for batch in shards.in_order(64):
            logits = model(network_input(torch.tensor(batch.pixels).to(device), config["normalisation"]))
            scores.append(probabilities(logits, len(config["pathologies"])).float().cpu().numpy())
            labels.append(np.where(batch.targets == IGNORED, np.nan, batch.targets).astype(np.float64))
    model.train()
    areas = dict(zip(config["pathologies"], auroc(np.concatenate(scores), np.concatenate(labels)), strict=True))
    defined = {f"auroc {name}": float(area) for name, area in areas.items() if not math.isnan(area)}
    chosen = [areas[name] for name in config["selection_pathologies"] if not math.isnan(areas[name])]
    return defined | ({"selection": float(np.mean(chosen))} if chosen else {})


def _finish(
    job: TrainingJob, model: nn.Module, progress: Progress, rows: int, targets: dict[str, Any], device: torch.device, report: Report, seconds: float
) -> None:  # fmt: skip
    config = job.config
    weights = progress.best or dict(model.state_dict())
    require_finite(f"classifier {config['architecture']}:", weights, progress.update, "its learning_rate")
    metadata = {k: config[k] for k in ("architecture", "normalisation", "pathologies", "uncertainty", "size")}
    entry = job.attempt.write("weights.safetensors", to_safetensors(weights, {"model": json.dumps(metadata)}))
    matrix = np.stack(list(targets.values()))
    metrics = {
        "selected": "best" if progress.best else "last (no AUROC is defined on the validation images)",
        "best_update": progress.best_update if progress.best else progress.update,
        "validation_auroc": progress.best_score if progress.best else None,
        "history": progress.history,
        "positive_targets": dict(zip(config["pathologies"], (matrix == 1).sum(axis=0).tolist(), strict=True)),
    }
    report(result([entry], rows, metrics, {"device": str(device), "threads": job.threads, "training_seconds": round(seconds, 2)}))


def load_classifier(attempt_store: Any, record: Record) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network in eval mode on the CPU, and {architecture, normalisation, pathologies, uncertainty, size}."""
    from chexseg_ray.stages.training_state import from_safetensors

    tensors, metadata = from_safetensors(attempt_store.read(record, "weights.safetensors"))
    facts: dict[str, Any] = json.loads(metadata["model"])
    model = build_classifier(facts["architecture"], len(facts["pathologies"]), facts["uncertainty"])
    model.load_state_dict(tensors)
    return model.eval(), facts
