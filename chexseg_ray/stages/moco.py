"""Train an encoder with MoCo v2 on X-rays without labels, as an initialisation of the segmentation encoder.

INPUT   images {cxr_id, height, width, pixels} of the training splits; the encoder's own initialisation, if it has one
OUTPUT  weights.safetensors (the query encoder without its head; architecture and normalisation in its metadata)
FAN-OUT one training; 0, 1 or num_replicas workers, which share each batch: keys and gradients are added over them
"""

import json
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from chexseg_ray.data.images import content_box
from chexseg_ray.errors import InputError
from chexseg_ray.pretraining.encoders import build_encoder, encoder_channels
from chexseg_ray.pretraining.moco import MoCo, Projector, Views, contrastive_loss, view_inputs
from chexseg_ray.progress import track
from chexseg_ray.stages.encoder import initialise
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.replicas import Replica
from chexseg_ray.stages.shards import Batch, ImageShards
from chexseg_ray.stages.tables import read_manifest
from chexseg_ray.stages.train import NanLossError, Report, TrainingJob, begin, require_finite, result, run_training
from chexseg_ray.stages.training_state import to_safetensors


def make(task: Task) -> Made:
    """Train to num_updates, going on from a saved state (both encoders, queue, optimiser) when there is one."""
    resources = task.execution.moco
    return run_training(train, TrainingJob.of(task, resources), resources, task.execution, f"moco-{task.step.fingerprint}")


def build_moco(config: Mapping[str, Any]) -> MoCo:
    """Both encoders with random weights and an untouched queue, from torch's seed."""
    channels = encoder_channels(config["architecture"])
    query, key = (Projector(build_encoder(config["architecture"]), channels, config["dimensions"]) for _ in range(2))
    return MoCo(query, key, config["queue_size"], torch.Generator().manual_seed(config["seed"]))


def train(job: TrainingJob, report: Report) -> None:
    """The training loop: Adam, its rate a tenth after each milestone."""
    config, start = job.config, time.monotonic()
    device = begin(config["seed"], job.threads)
    replica = Replica.here()
    model = build_moco(config)
    _, encoder = initialise(model.query.encoder, job, config["architecture"], config["normalisation"])
    model.key.encoder.load_state_dict(model.query.encoder.state_dict())
    model = model.to(device).train()
    optimiser = torch.optim.Adam(model.query.parameters(), lr=config["learning_rate"], weight_decay=config["weight_decay"], fused=True)
    keeper = job.keeper(replica)
    progress = keeper.load(model, optimiser)
    shards = _shards(job)
    if shards.num_rows < config["batch_size"]:
        raise InputError(f"moco: {shards.num_rows} training images are fewer than one batch of {config['batch_size']}: lower moco.batch_size")
    total = config["num_updates"]
    due = {math.ceil(total * (i + 1) / 10) for i in range(10)}
    show, telemetry = track("moco: updates", total), job.telemetry(replica, progress.update)
    batches = shards.batches(config["batch_size"], config["seed"], progress.update)
    while progress.update < total:
        batch = next(batches)
        for group in optimiser.param_groups:
            group["lr"] = config["learning_rate"] * 0.1 ** sum(progress.update >= milestone for milestone in config["milestones"])
        loss, accuracy = moco_update(model, optimiser, batch, config, progress.update, replica, device)
        if not math.isfinite(loss):
            raise NanLossError(f"moco update {progress.update}: loss is {loss}, images {', '.join(batch.ids)}: lower moco.learning_rate")
        progress.update += 1
        if progress.update in due:
            progress.history.append({"update": float(progress.update), "loss": loss, "accuracy": accuracy})
            telemetry.recorded(progress.history[-1])
        show(progress.update, f"loss {loss:.3f}, {accuracy:.0%} found")
        telemetry.updated(progress.update)
        keeper.save_if_due(model, optimiser, progress)
    weights = model.query.encoder.state_dict()
    require_finite("moco", weights, progress.update, "moco.learning_rate")
    facts = {"architecture": config["architecture"], "normalisation": config["normalisation"], "size": config["size"], "trained_by": "moco"}
    entries = [job.attempt.write("weights.safetensors", to_safetensors(weights, {"model": json.dumps(facts)}))] if replica.rank == 0 else []
    run = job.run_facts(device, replica, start)
    report(result(entries, shards.num_rows, {"history": progress.history, "encoder": encoder}, run))


def _shards(job: TrainingJob) -> ImageShards:
    """Every image of the training splits; its labels are not looked at."""
    store, splits = job.attempt.store, job.config["train_splits"]
    targets: dict[str, npt.NDArray[np.int8]] = {}
    for split in splits:
        manifest = read_manifest(store, job.inputs[f"manifest_{split}"])
        targets |= dict.fromkeys(manifest["cxr_id"], np.zeros(0, dtype=np.int8))
    return ImageShards(store, [job.inputs[f"images_{split}"] for split in splits], job.config["size"], targets)


def moco_update(
    model: MoCo, optimiser: torch.optim.Optimizer, batch: Batch, config: Mapping[str, Any], update: int, replica: Replica, device: torch.device
) -> tuple[float, float]:
    """One update on one batch, a function of (weights, queue, seed, update). Returns the whole batch's loss and accuracy.

    Shuffled BatchNorm: keys are computed in another order than queries, so that a query and its key share no replica's statistics.
    Every replica has the whole batch, so the shuffle is a choice of rows; only keys, gradients and running statistics travel.
    """
    rng = np.random.default_rng([config["seed"], 707, update])
    count = len(batch.samples)
    views = [Views.draw(rng, count, config["rotation_degrees"], config["min_crop"]) for _ in range(2)]
    order = rng.permutation(count) if config["num_replicas"] > 1 else np.arange(count)
    own = np.arange(count)[replica.share(count)]
    parts, seed = config["num_replicas"], (config["seed"], update)
    pixels, boxes = torch.from_numpy(batch.pixels), [content_box(*sample.original, config["size"]) for sample in batch.samples]

    def inputs(view: Views, rows: Any) -> torch.Tensor:
        matrices = view.of(rows).matrices([boxes[i] for i in rows], config["size"])
        return view_inputs(pixels[rows].to(device), matrices, config["normalisation"])

    with torch.no_grad():
        model.follow(config["momentum"])
        keys = torch.zeros(count, config["dimensions"], device=device)
        keys[torch.from_numpy(order[own]).to(device)] = replica.forward(model.key, inputs(views[1], order[own]), parts, (*seed, 1))
    replica.sum_([keys])
    optimiser.zero_grad(set_to_none=True)
    queries = replica.forward(model.query, inputs(views[0], own), parts, (*seed, 0))
    loss, found = contrastive_loss(queries, keys[torch.from_numpy(own).to(device)], model.queue, config["temperature"])
    (loss / count).backward()  # type: ignore[no-untyped-call]
    replica.sum_(p.grad for p in model.query.parameters() if p.grad is not None)
    whole = torch.stack([loss.detach(), found.to(loss.dtype)])
    replica.sum_([whole])
    values = (whole / count).tolist()
    if math.isfinite(values[0]):
        optimiser.step()
        model.enqueue(keys, update)
    return values[0], values[1]
