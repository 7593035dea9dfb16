"""Train IRNet on the CAMs of the weakly labelled images.

INPUT   images {cxr_id, height, width, pixels}, cams {cxr_id, probability[K], cam[K, h, w]} and image labels of the weak split; encoder weights
OUTPUT  weights.safetensors (trunk and branches; normalisation, displacement and size in its metadata)
FAN-OUT one training; 0 or more workers, which share each batch: sums and pair counts are added over them, then divided
"""

import json
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from chexseg_ray.artifacts import Record, Store
from chexseg_ray.data.images import content_box
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.errors import InputError
from chexseg_ray.progress import track
from chexseg_ray.pseudo.affinity import IrnetLosses, PairLabels, irnet_losses, total_loss
from chexseg_ray.pseudo.gating import open_gates
from chexseg_ray.pseudo.ir_augmentation import Crop
from chexseg_ray.pseudo.ir_labels import FOREGROUND
from chexseg_ray.pseudo.irnet import STRIDE, DisplacementBranch, IRNet, polynomial_decay
from chexseg_ray.stages.encoder import initialise
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.replicas import Replica
from chexseg_ray.stages.shards import Batch, ImageShards
from chexseg_ray.stages.tables import label_matrix, read_manifest, split_cams
from chexseg_ray.stages.train import NanLossError, Report, TrainingJob, begin, require_finite, result, run_training
from chexseg_ray.stages.training_state import from_safetensors, to_safetensors


def make(task: Task) -> Made:
    """Train to num_updates, going on from a saved state when there is one."""
    resources = task.execution.irnet
    return run_training(train, TrainingJob.of(task, resources), resources, task.execution, f"irnet-{task.step.fingerprint}")


def _usable(job: TrainingJob) -> dict[str, npt.NDArray[np.int8]]:
    """Of the weak images with a pathology whose gate is open and whose CAM is not zero throughout: int8 [K], 1 for each such one."""
    store, cams = job.attempt.store, job.inputs["cams"]
    manifest = read_manifest(store, job.inputs["manifest_weak"])
    every = list(manifest["cxr_id"])
    labels, rows = label_matrix(manifest, every), {cxr_id: i for i, cxr_id in enumerate(every)}
    out: dict[str, npt.NDArray[np.int8]] = {}
    for part in cams.paths("cams/weak/"):
        table, maps = split_cams(store.read_table(cams, part))
        ids = table.column("cxr_id").to_pylist()
        probability = np.array(table.column("probability").to_pylist(), dtype=np.float32)
        gates = open_gates(job.config, labels[[rows[cxr_id] for cxr_id in ids]], probability) & (maps.max(axis=(2, 3)) > 0)
        out |= {cxr_id: gate.astype(np.int8) for cxr_id, gate in zip(ids, gates, strict=True) if gate.any()}
    return out


def train(job: TrainingJob, report: Report) -> None:
    """The training loop: SGD without momentum, polynomial decay (paper appendix B.1)."""
    config, start = dict(job.config), time.monotonic()
    device = begin(config["seed"], job.threads)
    replica = Replica.here()
    model = IRNet(config["displacement"])
    normalisation, encoder = initialise(model.trunk.layers, job, "resnet50", config.get("normalisation", ""))
    config["normalisation"] = normalisation
    model = model.to(device).train()
    optimiser = torch.optim.SGD(model.parameter_groups(config["learning_rate"]), lr=config["learning_rate"], weight_decay=config["weight_decay"])
    keeper = job.keeper(replica)
    progress = keeper.load(model.branches, optimiser)
    targets = _usable(job)
    shards = ImageShards(job.attempt.store, [job.inputs["images_weak"]], config["size"], targets, job.inputs["cams"])
    if shards.num_rows < config["batch_size"]:
        raise InputError(
            f"irnet: {shards.num_rows} weak images show a pathology, fewer than one batch of {config['batch_size']}: "
            "lower irnet.batch_size, or open the gate (pseudo_masks.gate)"
        )
    total = config["num_updates"]
    show, telemetry = track("irnet: updates", total), job.telemetry(replica, progress.update)
    batches = shards.batches(config["batch_size"], config["seed"], progress.update)
    due = {math.ceil(total * (i + 1) / 10) for i in range(10)}
    while progress.update < total:
        batch = next(batches)
        decay = polynomial_decay(progress.update, total, config["decay_power"])
        for group, scale in zip(optimiser.param_groups, (1, 10), strict=False):
            group["lr"] = config["learning_rate"] * scale * decay
        pixels, labels = training_sample(batch, config, progress.update, replica)
        losses = irnet_update(model, optimiser, pixels.to(device), labels.to(device), config, replica)
        if not np.isfinite(losses).all():
            raise NanLossError(f"irnet update {progress.update}: losses are {losses}, images {', '.join(batch.ids)}: lower irnet.learning_rate")
        progress.update += 1
        if progress.update in due:
            names = ("boundary", "foreground_displacement", "background_displacement")
            progress.history.append({"update": float(progress.update), **dict(zip(names, losses, strict=True))})
            telemetry.recorded(progress.history[-1])
        show(progress.update, f"boundary loss {losses[0]:.3f}")
        telemetry.updated(progress.update)
        keeper.save_if_due(model.branches, optimiser, progress)
    if config["displacement"]:
        set_mean_displacement(model, shards, config, device, replica)
    skipped = job.inputs["images_weak"].rows - shards.num_rows
    metrics = {"history": progress.history, "encoder": encoder, "images_used": shards.num_rows, "images_without_target": skipped}
    require_finite("irnet", model.state_dict(), progress.update, "irnet.learning_rate")
    facts = {k: config[k] for k in ("displacement", "normalisation", "size")}
    weights = to_safetensors(model.state_dict(), {"model": json.dumps(facts)})
    entries = [job.attempt.write("weights.safetensors", weights)] if replica.rank == 0 else []
    run = job.run_facts(device, replica, start)
    report(result(entries, shards.num_rows, metrics, run))


def training_sample(batch: Batch, config: Mapping[str, Any], update: int, replica: Replica) -> tuple[torch.Tensor, torch.Tensor]:
    """This replica's share of a batch: pixels uint8 [b, S, S] and IR labels uint8 [b, K, S / 4, S / 4], a function of (seed, update)."""
    size = config["size"]
    rng = np.random.default_rng([config["seed"], 606, update])
    low, high = config["rescale"]
    crops = [Crop.draw(rng, size // STRIDE, low, high, config["flip"]) for _ in batch.samples]
    pixels, labels = [], []
    for sample, crop in list(zip(batch.samples, crops, strict=True))[replica.share(len(crops))]:
        assert sample.cams is not None
        gate, box = sample.target == 1, content_box(*sample.original, size)
        pixels.append(crop.pixels(sample.pixels))
        labels.append(crop.labels(sample.cams, gate, box, size, config["foreground"], config["background"]))
    return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(labels))


def irnet_update(
    model: IRNet, optimiser: torch.optim.Optimizer, pixels: torch.Tensor, labels: torch.Tensor, config: Mapping[str, Any], replica: Replica
) -> list[float]:
    """One update on one batch, of which this is a replica's share. Returns the whole batch's three losses."""
    optimiser.zero_grad(set_to_none=True)
    dtype = next(model.parameters()).dtype
    logits, displacement = model(network_input(pixels, config["normalisation"]).to(dtype))
    pairs = PairLabels(labels, config["radius"])
    counts = pairs.counts()
    replica.sum_([counts])
    losses = irnet_losses(logits.sigmoid(), displacement, pairs, counts)
    total_loss(losses, config["loss_weights"]).backward()  # type: ignore[no-untyped-call]
    replica.sum_(p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None)
    optimiser.step()
    return _whole(losses, replica)


def _whole(losses: IrnetLosses, replica: Replica) -> list[float]:
    values = torch.stack([losses.boundary, losses.foreground, losses.background]).detach()
    replica.sum_([values])
    return [float(value) for value in values]


def set_mean_displacement(model: IRNet, shards: ImageShards, config: Mapping[str, Any], device: torch.device, replica: Replica) -> None:
    """Set the displacement branch's mean shift: the mean of D over the confident foreground cells of all training images.

    Eq. 3 leaves D free up to a constant, and the ways from an instance's cells to its centroid add up to zero: so the mean over
    foreground is the constant. (The irn code takes the mean over all cells.)
    """
    branch = model.branches["displacement"]
    assert isinstance(branch, DisplacementBranch)
    still = {**config, "rescale": [1.0, 1.0], "flip": False}
    total = torch.zeros(3, dtype=torch.float64, device=device)
    model.eval()
    branch.mean.zero_()
    for number, batch in enumerate(shards.in_order(config["batch_size"])):
        if number % replica.count != replica.rank:
            continue
        pixels, labels = training_sample(batch, still, 0, Replica(0, 1))
        with torch.no_grad():
            _, field = model(network_input(pixels.to(device), config["normalisation"]))
        cells = (labels.to(device) == FOREGROUND).any(dim=1)
        total[:2] += (field.permute(0, 2, 3, 1)[cells]).sum(dim=0, dtype=torch.float64)
        total[2] += cells.sum()
    replica.sum_([total])
    branch.mean.copy_(total[:2] / total[2].clamp(min=1))
    model.train()


def load_irnet(store: Store, record: Record) -> tuple[IRNet, dict[str, Any]]:
    """The trained network in eval mode on the CPU, and {displacement, normalisation, size}."""
    tensors, metadata = from_safetensors(store.read(record, "weights.safetensors"))
    facts: dict[str, Any] = json.loads(metadata["model"])
    model = IRNet(facts["displacement"])
    model.load_state_dict(tensors)
    model.eval()
    return model, facts
