"""Train the segmentation network of one sweep point (paper section 3.3.2).

The step takes expert images with masks and, at p < 1, weak images with pseudo masks; each sample of a batch is an
expert one with probability p. It keeps a checkpoint, and chooses a threshold for each pathology.

INPUT   images {cxr_id, pixels} and masks {cxr_id, height, width, rle[K]} of expert_train and validation; with p < 1
        also weak images and their pseudo masks; with another init than random also the encoder's weights
OUTPUT  weights.safetensors: the kept checkpoint, with what builds the network, and its normalisation, as JSON under
        `model` in its metadata. No table; K thresholds with their sources and the history are in the record's metrics.
FAN-OUT one training a point, in a trial of the sweep or by itself; 0, 1 or num_replicas workers, which share each batch
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from chexseg_ray.data.images import content_box
from chexseg_ray.engine.execution import Made, Task
from chexseg_ray.engine.launch import run_training
from chexseg_ray.engine.pool import (
    Rows,
    accepted_ids,
    load_masks,
    load_pixels,
    mask_sizes,
    shared_rows,
    shared_value,
    subset_key,
    unpack_masks,
)
from chexseg_ray.engine.replicas import Replica
from chexseg_ray.engine.train import (
    NanLossError,
    Report,
    TrainingJob,
    TrainingRun,
    Values,
    job_facts,
    parts_of,
)
from chexseg_ray.engine.training_state import Progress
from chexseg_ray.evaluation.thresholds import (
    Choice,
    ScoreHistogram,
    choose_segmentation_thresholds,
    common_pathologies,
    segmentation_grid,
)
from chexseg_ray.segmentation.mixing import draw_batch, expert_subset, trial_seed, weak_subset
from chexseg_ray.segmentation.score_counts import score_counts
from chexseg_ray.segmentation.training import predict, predicted_scores, segmentation_update, unpacked
from chexseg_ray.stages.encoder import initialise
from chexseg_ray.stages.networks import NETWORK_FACTS, NetworkSettings
from chexseg_ray.updates.precision import placed
from chexseg_ray.updates.step import Pass

_SCORED_TOGETHER = 8  # images that pass the network together in validation; the last bits of a score depend on it


@dataclass(frozen=True, kw_only=True)
class Settings(NetworkSettings):
    """The settings that determine a training: the step's hashed config.

    The fields are those of config.sweep.SegmentationConfig and, from `p` on, of config.axes.SweepPoint; `sweep_seed` is
    sweep.seed, and `init` is `file` for the path of a file. `normalisation` is empty where weights bring their own.
    """

    normalisation: str = ""
    batch_size: int
    num_replicas: int
    precision: str = "float32"
    learning_rate: float
    num_updates: int
    num_validations: int
    dice_smoothing: float
    thresholds: str
    threshold_grid: str = "paper"
    fixed_threshold: float
    checkpoint: str
    min_positives: int = 1
    p: float
    weak_n: int
    num_expert: int | None
    init: str
    trial: int
    sweep_seed: int


@dataclass(frozen=True)
class MaskedSet:
    """N images with masks.

    Args:
        ids: the cxr_ids.
        pixels: uint8 [S, S] of each.
        masks: bit-packed uint8 [K, ceil(S S / 8)] of each.
        sizes: original (height, width) in pixels, by cxr_id.
    """

    ids: list[str]
    pixels: Rows
    masks: Rows
    sizes: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class SegmentationJob(TrainingJob[Settings]):
    """The training of a sweep point; `shared` has references into Ray's object store, as in engine.pool.share_pool."""

    shared: Mapping[str, Any] = field(default_factory=dict)

    @property
    def point(self) -> tuple[str, float]:
        """(method, p) of the point; the method is `expert` where no pseudo mask is drawn."""
        masks = self.inputs.get("pseudo_masks")
        return masks.config["method"] if masks else "expert", self.settings.p

    def masked_set(self, images: str, masks: str, ids: list[str]) -> MaskedSet | None:
        """Load the images `ids` of the input named `images`, with masks of the input named `masks`; None if no ids."""
        if not ids:
            return None
        shared, store, size = self.shared, self.attempt.store, self.settings.size
        image_record, mask_record = self.inputs[images], self.inputs[masks]
        image_key, mask_key = f"{image_record.address}/images", f"{mask_record.address}/masks"
        pixels = shared_rows(shared, image_key, ids, lambda: load_pixels(store, image_record, ids))
        packed = shared_rows(shared, mask_key, ids, lambda: load_masks(store, mask_record, size, ids))
        size_key = f"{mask_record.address}/sizes"
        sizes = shared_value(shared, size_key, lambda: mask_sizes(store, mask_record, set(ids)))
        return MaskedSet(ids, pixels, packed, sizes)

    def expert_ids(self) -> list[str]:
        """Return the expert training images that the point may use, sorted; none if the study has no expert masks."""
        if "images_expert_train" not in self.inputs:
            return []
        ids = accepted_ids(self.attempt.store, self.inputs["images_expert_train"])
        return expert_subset(ids, self.settings.sweep_seed, self.settings.trial, self.settings.num_expert)

    def weak_ids(self) -> list[str]:
        """Return the weak images of the point's trial, sorted; none at p = 1."""
        if "pseudo_masks" not in self.inputs:
            return []
        store, masks, settings = self.attempt.store, self.inputs["pseudo_masks"], self.settings
        seed, trial, weak_n = settings.sweep_seed, settings.trial, settings.weak_n
        key = subset_key(masks, seed, trial, weak_n)
        return shared_value(self.shared, key, lambda: weak_subset(accepted_ids(store, masks), seed, trial, weak_n))

    def validation_ids(self) -> list[str]:
        """Return the validation images, sorted; none if the study has no expert masks."""
        if "images_validation" not in self.inputs:
            return []
        return accepted_ids(self.attempt.store, self.inputs["images_validation"])


def make(task: Task) -> Made:
    """Train up to num_updates, and continue from a saved state if there is one.

    Args:
        task: the step to make; its execution has the label of the point and the rows that the sweep shares.

    Returns:
        The weights; `rows` counts samples; the metrics are checkpoint, history, thresholds, subset sizes and encoder.

    Raises:
        InputError, TransientError: as `train` and run_training.
    """
    settings, execution = Settings(**task.step.config), task.execution
    resources = execution.compute.segmentation.of(settings.weak_n)
    label = execution.label or f"segmentation {settings.architecture}"
    job = SegmentationJob(settings, **job_facts(task, resources, label), shared=execution.shared)
    return run_training(train, job, resources, execution, f"segmentation-{task.step.fingerprint}")


def train(job: SegmentationJob, report: Report) -> None:
    """Run the training loop: Adam with a constant learning rate on the class average Dice loss.

    Args:
        job: the training.
        report: takes plain metrics, the last of which are the result.

    Raises:
        InputError: there are fewer weak or expert images than the point asks for.
        NanLossError: a loss, a score or a weight is not finite.
    """
    settings = job.settings
    seed = trial_seed(settings.sweep_seed, settings.trial)
    run = TrainingRun(job, report, seed)
    model: Any = settings.build()
    names = settings.pathologies
    normalisation, encoder = initialise(model.encoder, job, settings.encoder, settings.normalisation, names)
    model = placed(model, run.device, settings.precision).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)
    progress = run.resume(model, optimiser)
    expert_ids, weak_ids = job.expert_ids(), job.weak_ids()
    expert = job.masked_set("images_expert_train", "images_expert_train", expert_ids)
    weak = job.masked_set("images_weak", "pseudo_masks", weak_ids)
    validation = job.masked_set("images_validation", "images_validation", job.validation_ids())
    scoring = Scoring(model, settings, normalisation, run.device)

    def on_device(pass_: Pass, pixels: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        """Do one update with a batch on the device; its masks are bit-packed. Returns its loss."""
        masks, smoothing = unpacked(packed, settings.size), settings.dice_smoothing
        forward = partial(pass_, model)
        return segmentation_update(model, optimiser, pixels, masks, normalisation, smoothing, forward, run.sum_)

    do = run.updates(on_device, optimiser, [model], settings.num_replicas, settings.precision)

    def update(number: int) -> tuple[torch.Tensor, list[str]]:
        """Do one update; return its loss and the cxr_ids of this process's share of the batch."""
        ids, pixels, packed = mixed_batch(settings, expert, weak, seed, number, run.replica)
        return do(number, torch.from_numpy(pixels), torch.from_numpy(packed)), ids

    def validate(values: Values) -> tuple[dict[str, float], float]:
        """The history's entry, and the score that chooses the checkpoint, NaN where the last one is kept."""
        score = scoring.validation_miou(validation)
        entry = {"update": progress.update, **values}
        if not math.isnan(score):
            entry["validation_miou"] = score
        return entry, score if settings.checkpoint == "best" else math.nan

    due = parts_of(settings.num_updates, settings.num_validations)
    run.train(update, ["loss"], due, validate, "segmentation.learning_rate", point=job.point)
    if progress.best:
        model.load_state_dict(progress.best)
    metrics = {
        **_checkpoint(progress),
        "thresholds": scoring.thresholds(expert, validation),
        "weak_ids": len(weak_ids),
        "expert_ids": len(expert_ids),
        "normalisation": normalisation,
        "encoder": encoder,
    }
    facts = {name: getattr(settings, name) for name in NETWORK_FACTS if getattr(settings, name) is not None}
    facts["normalisation"] = normalisation
    rows = settings.num_updates * settings.batch_size
    run.finish(dict(model.state_dict()), facts, rows, metrics, "segmentation.learning_rate")


def _checkpoint(progress: Progress) -> dict[str, Any]:
    """The part of the record's metrics about the kept checkpoint."""
    return {
        "best_update": progress.best_update if progress.best else progress.update,
        "validation_miou": progress.best_score if progress.best else None,
        "history": progress.history,
    }


def mixed_batch(
    settings: Settings, expert: MaskedSet | None, weak: MaskedSet | None, seed: int, update: int, replica: Replica
) -> tuple[list[str], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw this process's share of a batch: ids, pixels uint8 [b, S, S], bit-packed masks uint8 [b, K, ceil(S S / 8)].

    Args:
        settings: the training's settings.
        expert: images with expert masks; may be None only at p = 0.
        weak: images with pseudo masks; None at p = 1.
        seed: the trial's seed.
        update: u >= 0, the batch's number.
        replica: this process.
    """
    num_expert, num_weak = len(expert.ids) if expert else 0, len(weak.ids) if weak else 0
    is_expert, index = draw_batch(num_expert, num_weak, settings.batch_size, settings.p, seed, update)
    share = replica.share(settings.batch_size)
    ids, pixels, masks = [], [], []
    for from_expert, i in zip(is_expert[share], index[share], strict=True):
        source = expert if from_expert else weak
        assert source is not None
        ids.append(source.ids[i])
        pixels.append(source.pixels.gather([source.ids[i]])[0])
        masks.append(source.masks.gather([source.ids[i]])[0])
    return ids, np.stack(pixels), np.stack(masks)


@dataclass(frozen=True)
class Scoring:
    """Compares a network's scores with the masks of a set: for validation, and for thresholds."""

    model: nn.Module
    settings: Settings
    normalisation: str
    device: torch.device

    def histogram(self, images: MaskedSet) -> tuple[ScoreHistogram, npt.NDArray[np.int64]]:
        """Count the scores of the content of `images` against their masks, and each pathology's positive images [K].

        Raises:
            NanLossError: a score is not finite.
        """
        count = len(self.settings.pathologies)
        histogram = ScoreHistogram(count, segmentation_grid(self.settings.threshold_grid))
        positives = np.zeros(count, dtype=np.int64)
        add = self._add_on_cpu if self.device.type == "cpu" else self._add_on_device
        for start in range(0, len(images.ids), _SCORED_TOGETHER):
            positives += add(histogram, images, images.ids[start : start + _SCORED_TOGETHER])
        return histogram, positives

    def _add_on_cpu(self, histogram: ScoreHistogram, images: MaskedSet, ids: list[str]) -> npt.NDArray[np.int64]:
        """Add some images to a histogram; return how many of them show each pathology [K]."""
        size = self.settings.size
        scores = predict(self.model, images.pixels.gather(ids), self.normalisation, self.device)
        _refuse_not_finite(bool(np.isfinite(scores).all()), ids)
        truth = unpack_masks(images.masks.gather(ids), size)
        for i, cxr_id in enumerate(ids):
            box = content_box(*images.sizes[cxr_id], size)
            for k in range(scores.shape[1]):
                histogram.add(k, scores[i, k, box.rows, box.columns], truth[i, k, box.rows, box.columns])
        found: npt.NDArray[np.int64] = truth.any(axis=(2, 3)).sum(axis=0)
        return found

    def _add_on_device(self, histogram: ScoreHistogram, images: MaskedSet, ids: list[str]) -> npt.NDArray[np.int64]:
        """Do as _add_on_cpu; scores stay on their device, where they are counted."""
        size = self.settings.size
        scores = predicted_scores(self.model, images.pixels.gather(ids), self.normalisation, self.device)
        _refuse_not_finite(bool(torch.isfinite(scores).all()), ids)
        truth = unpacked(torch.from_numpy(images.masks.gather(ids)).to(self.device), size)
        inside = torch.zeros(len(ids), size, size, dtype=torch.bool)
        for i, cxr_id in enumerate(ids):
            box = content_box(*images.sizes[cxr_id], size)
            inside[i, box.rows, box.columns] = True
        thresholds = torch.from_numpy(histogram.thresholds).to(self.device)
        counts = score_counts(scores, truth, inside.to(self.device), thresholds)
        histogram.counts += counts.cpu().numpy()
        found: npt.NDArray[np.int64] = truth.any(dim=3).any(dim=2).sum(dim=0).cpu().numpy()
        return found

    def validation_miou(self, validation: MaskedSet | None) -> float:
        """Average the pooled IoU of `validation` at each best threshold over its common pathologies; NaN if None."""
        if validation is None:
            return math.nan
        histogram, positives = self.histogram(validation)
        common = common_pathologies(positives, self.settings.min_positives)
        return float(np.nan_to_num(histogram.iou()).max(axis=1)[common].mean())

    def thresholds(self, expert: MaskedSet | None, validation: MaskedSet | None) -> dict[str, dict[str, Any]]:
        """Choose thresholds on `validation` or `expert`: {pathology: {threshold, iou (None if not tuned), source}}."""
        found: dict[str, dict[str, Any]] = {}
        for name, choice in zip(self.settings.pathologies, self._choose(expert, validation), strict=True):
            iou = None if math.isnan(choice.iou) else choice.iou
            found[name] = {"threshold": choice.threshold, "iou": iou, "source": choice.source}
        return found

    def _choose(self, expert: MaskedSet | None, validation: MaskedSet | None) -> list[Choice]:
        """Choose K thresholds on the validation set, or on the expert set for pathologies that are too rare in it."""
        fixed = float(np.float32(self.settings.fixed_threshold))
        if self.settings.thresholds == "fixed":
            return [Choice(fixed, math.nan, "fixed") for _ in self.settings.pathologies]
        sources, minima = [], []
        preferred = (("validation", validation, self.settings.min_positives), ("expert_train", expert, 1))
        for name, images, minimum in preferred:
            if images is not None:
                sources.append((name, *self.histogram(images)))
                minima.append(minimum)
        return choose_segmentation_thresholds(sources, minima, fixed)


def _refuse_not_finite(finite: bool, ids: list[str]) -> None:
    if not finite:
        rule = f"segmentation scores are not finite, images {', '.join(ids)}"
        raise NanLossError(f"{rule}: lower segmentation.learning_rate")
