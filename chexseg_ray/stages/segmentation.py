"""Train the segmentation network of one sweep point.

INPUT   images {cxr_id, pixels} and masks {cxr_id, rle[K]} of expert_train and validation; with p < 1 the weak images and
        their pseudo masks; with another init than random the encoder's weights
OUTPUT  weights.safetensors; thresholds[K] with their sources in the record
FAN-OUT one training a point; inside a trial of the sweep, or alone; 0, 1 or num_replicas workers, which share each batch
"""

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from chexseg_ray.artifacts import Record
from chexseg_ray.data.images import content_box
from chexseg_ray.errors import InputError
from chexseg_ray.evaluation.thresholds import (
    SEGMENTATION_GRID,
    Choice,
    ScoreHistogram,
    choose_segmentation_thresholds,
    common_pathologies,
)
from chexseg_ray.segmentation.mixing import draw_batch, expert_subset, trial_seed
from chexseg_ray.segmentation.network import build_network, check_network
from chexseg_ray.segmentation.training import predict, segmentation_update
from chexseg_ray.stages.encoder import initialise
from chexseg_ray.stages.execution import Made, Task
from chexseg_ray.stages.pool import (
    Rows,
    accepted_ids,
    load_masks,
    load_pixels,
    mask_sizes,
    shared_rows,
    shared_value,
    subset_key,
    unpack_masks,
    weak_ids,
)
from chexseg_ray.stages.replicas import Replica
from chexseg_ray.stages.train import NanLossError, Report, TrainingJob, begin, require_finite, result, run_training
from chexseg_ray.stages.training_state import Progress, from_safetensors, to_safetensors


@dataclass(frozen=True)
class MaskedSet:
    """Images with masks: ids, pixels, bit-packed masks, and the original sizes {cxr_id: (height, width)}."""

    ids: list[str]
    pixels: Rows
    masks: Rows
    sizes: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class SegmentationJob(TrainingJob):
    """A point's training; `shared` holds references into the object store."""

    shared: Mapping[str, Any]

    @property
    def point(self) -> tuple[str, float]:
        """(method, p) of the point; `expert` where no pseudo mask is drawn."""
        masks = self.inputs.get("pseudo_masks")
        return masks.config["method"] if masks else "expert", self.config["p"]

    def masked_set(self, images: str, masks: str, ids: list[str]) -> MaskedSet:
        """The rows of some ids from an images and a masks input."""
        store, image_record, mask_record = self.attempt.store, self.inputs[images], self.inputs[masks]
        pixels = shared_rows(self.shared, f"{image_record.address}/images", ids, lambda: load_pixels(store, image_record, ids))
        size = self.config["size"]
        packed = shared_rows(self.shared, f"{mask_record.address}/masks", ids, lambda: load_masks(store, mask_record, size, ids))
        sizes = shared_value(self.shared, f"{mask_record.address}/sizes", lambda: mask_sizes(store, mask_record, set(ids)))
        return MaskedSet(ids, pixels, packed, sizes)

    def expert_ids(self) -> list[str]:
        """The expert training images that the point may use."""
        if "images_expert_train" not in self.inputs:
            return []
        ids = accepted_ids(self.attempt.store, self.inputs["images_expert_train"])
        return expert_subset(ids, self.config["sweep_seed"], self.config["trial"], self.config["num_expert"])

    def weak_ids(self) -> list[str]:
        """The weak images of the point's trial."""
        if "pseudo_masks" not in self.inputs:
            return []
        store, masks = self.attempt.store, self.inputs["pseudo_masks"]
        return shared_value(self.shared, subset_key(masks, self.config), lambda: weak_ids(accepted_ids(store, masks), self.config))


def make(task: Task) -> Made:
    """Train to num_updates, going on from a saved state when there is one."""
    execution, resources = task.execution, task.execution.segmentation
    common = vars(TrainingJob.of(task, resources, execution.label))
    job = SegmentationJob(**common, shared=execution.shared)
    return run_training(train, job, resources, execution, f"segmentation-{task.step.fingerprint}")


def check_networks(pairs: Iterable[tuple[str, str]], size: int, options: Mapping[str, Any]) -> None:
    """Refuse what smp cannot build, before anything is trained.

    Raises:
        InputError: naming architecture and encoder.
    """
    for architecture, encoder in pairs:
        try:
            check_network(architecture, encoder, size, options)
        except ValueError as error:
            raise InputError(f"segmentation.architecture, segmentation.encoder: {error}: choose others") from None


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """The network of a segmentation step, with random weights."""
    return build_network(config["architecture"], config["encoder"], len(config["pathologies"]), config)


def train(job: SegmentationJob, report: Report) -> None:
    """The training loop (Adam, constant learning rate, class average Dice)."""
    config, start = job.config, time.monotonic()
    seed = trial_seed(config["sweep_seed"], config["trial"])
    device = begin(seed, job.threads)
    replica, parts = Replica.here(), config["num_replicas"]
    model: Any = build_model(config)
    normalisation, encoder = initialise(model.encoder, job, config["encoder"], config.get("normalisation", ""))
    model = model.to(device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=config["learning_rate"], fused=True)
    keeper = job.keeper(replica)
    progress = keeper.load(model, optimiser)
    expert = job.masked_set("images_expert_train", "images_expert_train", ids) if (ids := job.expert_ids()) else None
    weak = job.masked_set("images_weak", "pseudo_masks", ids) if (ids := job.weak_ids()) else None
    validation = _validation_set(job)
    total, telemetry = config["num_updates"], job.telemetry(replica, progress.update)
    due = {math.ceil(total * (i + 1) / config["num_validations"]) for i in range(config["num_validations"])}
    while progress.update < total:
        ids, pixels, masks = _batch(config, expert, weak, seed, progress.update, replica)
        inputs = torch.from_numpy(pixels).to(device), torch.from_numpy(masks).to(device)
        forward = partial(replica.forward, model, num_replicas=parts, seed=(seed, progress.update))
        sum_ = replica.sum_ if replica.count > 1 else None
        loss = segmentation_update(model, optimiser, *inputs, normalisation, config["dice_smoothing"], forward, sum_)
        if not math.isfinite(loss):
            raise NanLossError(f"segmentation update {progress.update}: loss is {loss}, images {', '.join(ids)}: lower segmentation.learning_rate")
        progress.update += 1
        if progress.update in due:
            score = _validate(model, validation, config, normalisation, device)
            progress.history.append({"update": progress.update, "loss": loss} | ({} if math.isnan(score) else {"validation_miou": score}))
            if config["checkpoint"] == "best":
                progress.keep_if_best(model, score)
            report(dict(progress.history[-1]))
            telemetry.recorded(progress.history[-1], job.point)
        telemetry.updated(progress.update)
        keeper.save_if_due(model, optimiser, progress)
    if progress.best:
        model.load_state_dict(progress.best)
    choices = _thresholds(model, expert, validation, config, normalisation, device)
    facts = job.run_facts(device, replica, start)
    _finish(job, model, normalisation, encoder, progress, choices, replica, report, facts)


def _batch(
    config: Mapping[str, Any], expert: MaskedSet | None, weak: MaskedSet | None, seed: int, update: int, replica: Replica
) -> tuple[list[str], npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """This process's share of a batch: ids, pixels uint8 [b, S, S], masks bool [b, K, S, S]."""
    sizes = len(expert.ids) if expert else 0, len(weak.ids) if weak else 0
    is_expert, index = draw_batch(*sizes, config["batch_size"], config["p"], seed, update)
    own = replica.share(config["batch_size"])
    ids, pixels, masks = [], [], []
    for from_expert, i in zip(is_expert[own], index[own], strict=True):
        source = expert if from_expert else weak
        assert source is not None
        ids.append(source.ids[i])
        pixels.append(source.pixels.gather([source.ids[i]])[0])
        masks.append(source.masks.gather([source.ids[i]])[0])
    return ids, np.stack(pixels), unpack_masks(np.stack(masks), config["size"])


def _validation_set(job: SegmentationJob) -> MaskedSet | None:
    if "images_validation" not in job.inputs:
        return None
    ids = accepted_ids(job.attempt.store, job.inputs["images_validation"])
    return job.masked_set("images_validation", "images_validation", ids)


def score_histogram(
    model: nn.Module, images: MaskedSet, config: Mapping[str, Any], normalisation: str, device: torch.device
) -> tuple[ScoreHistogram, npt.NDArray[np.int64]]:
    """Scores against truth over the content of a set, in eval mode, and each pathology's number of positive images."""
    size, count = config["size"], len(config["pathologies"])
    histogram = ScoreHistogram(count, SEGMENTATION_GRID)
    positives = np.zeros(count, dtype=np.int64)
    for start in range(0, len(images.ids), 8):
        ids = images.ids[start : start + 8]
        scores = predict(model, images.pixels.gather(ids), normalisation, device)
        if not np.isfinite(scores).all():
            raise NanLossError(f"segmentation scores are not finite, images {', '.join(ids)}: lower segmentation.learning_rate")
        truth = unpack_masks(images.masks.gather(ids), size)
        for i, cxr_id in enumerate(ids):
            box = content_box(*images.sizes[cxr_id], size)
            positives += truth[i].any(axis=(1, 2))
            for k in range(count):
                histogram.add(k, scores[i, k, box.rows, box.columns], truth[i, k, box.rows, box.columns])
    return histogram, positives


def _validate(model: nn.Module, validation: MaskedSet | None, config: Mapping[str, Any], normalisation: str, device: torch.device) -> float:
    """The mean over the validation set's common pathologies of the best threshold's pooled IoU; NaN without a set."""
    if validation is None:
        return math.nan
    histogram, positives = score_histogram(model, validation, config, normalisation, device)
    common = common_pathologies(positives, config.get("min_positives", 1))
    return float(np.nan_to_num(histogram.iou()).max(axis=1)[common].mean())


def _thresholds(
    model: nn.Module, expert: MaskedSet | None, validation: MaskedSet | None, config: Mapping[str, Any], normalisation: str, device: torch.device
) -> list[Choice]:  # fmt: skip
    fixed = float(np.float32(config["fixed_threshold"]))
    if config["thresholds"] == "fixed":
        return [Choice(fixed, math.nan, "fixed") for _ in config["pathologies"]]
    named = [("validation", validation, config["min_positives"]), ("expert_train", expert, 1)]
    sources, minima = [], []
    for name, images, minimum in named:
        if images is not None:
            sources.append((name, *score_histogram(model, images, config, normalisation, device)))
            minima.append(minimum)
    return choose_segmentation_thresholds(sources, minima, fixed)


def _finish(
    job: SegmentationJob, model: nn.Module, normalisation: str, encoder: dict[str, Any], progress: Progress, choices: list[Choice],
    replica: Replica, report: Report, run: dict[str, Any],
) -> None:  # fmt: skip
    config = job.config
    thresholds = {
        name: {"threshold": c.threshold, "iou": None if math.isnan(c.iou) else c.iou, "source": c.source}
        for name, c in zip(config["pathologies"], choices, strict=True)
    }
    keys = ("architecture", "encoder", "output_stride", "atrous_rates", "pathologies", "size")
    metadata = {k: config[k] for k in keys if k in config} | {"normalisation": normalisation}
    require_finite("segmentation", model.state_dict(), progress.update, "segmentation.learning_rate")
    weights = to_safetensors(dict(model.state_dict()), {"model": json.dumps(metadata)})
    entries = [job.attempt.write("weights.safetensors", weights)] if replica.rank == 0 else []
    metrics = {
        "thresholds": thresholds,
        "best_update": progress.best_update if progress.best else progress.update,
        "validation_miou": progress.best_score if progress.best else None,
        "history": progress.history,
        "weak_ids": len(job.weak_ids()),
        "expert_ids": len(job.expert_ids()),
        "normalisation": normalisation,
        "encoder": encoder,
    }
    report(result(entries, config["num_updates"] * config["batch_size"], metrics, run))


def load_segmentation(attempt_store: Any, record: Record) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network in eval mode on the CPU, and {architecture, encoder, pathologies, size, normalisation; for
    DeepLab output_stride and atrous_rates}."""
    tensors, metadata = from_safetensors(attempt_store.read(record, "weights.safetensors"))
    facts: dict[str, Any] = json.loads(metadata["model"])
    model = build_model(facts)
    model.load_state_dict(tensors)
    return model.eval(), facts


def threshold_array(record: Record, pathologies: Sequence[str]) -> npt.NDArray[np.float32]:
    """The thresholds float32 [K] that a segmentation record chose."""
    return np.array([record.metrics["thresholds"][name]["threshold"] for name in pathologies], dtype=np.float32)
