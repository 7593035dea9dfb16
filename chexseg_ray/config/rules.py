"""Rules across the sections of a config. Each raises ValueError with the field, what is wrong, and what to write."""

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chexseg_ray.config.resources import ActorCompute
from chexseg_ray.config.upstream import IRNET_ENCODER
from chexseg_ray.errors import quoted

if TYPE_CHECKING:
    from chexseg_ray.config.schema import StudyConfig


def refuse_sections_that_do_not_fit(config: "StudyConfig") -> None:
    """Check every rule.

    Args:
        config: the parsed config.

    Raises:
        ValueError: a rule does not hold; the message names the field and the remedy.
    """
    _weak_sets_have_images(config)
    _expert_masks_are_there(config)
    _mappings_have_every_weak_n(config)
    _selection_is_among_the_pathologies(config)
    _cams_fit_their_classifier(config)
    _initial_weights_are_not_results(config)
    _pretraining_names_are_used(config)
    _actors_are_in_order(config)
    _batches_can_be_shared(config)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Return ` (did you mean 'trials'?)`, or an empty string if no known word is similar."""
    near = difflib.get_close_matches(word[:80], [str(name) for name in known], n=1, cutoff=0.5)
    return f" (did you mean {quoted(near[0])}?)" if near else ""


def _weak_sets_have_images(config: "StudyConfig") -> None:
    needs_weak = any(p < 1 for p in config.sweep.every("p"))
    if config.data.weak_csv is None and (needs_weak or "chexpert" in config.sweep.every("init")):
        raise ValueError(
            "data.weak_csv is null, but sweep.p below 1 and sweep.init chexpert need weakly labelled images"
        )
    if "moco" in config.sweep.every("init"):
        for split in config.moco.train_splits:
            csv = config.data.weak_csv if split == "weak" else config.data.expert_csv
            if csv is None:
                raise ValueError(f"moco.train_splits names {split!r}, whose CSV is null: name the CSV or other splits")


def _expert_masks_are_there(config: "StudyConfig") -> None:
    if config.data.expert_csv is not None:
        return
    with_experts = [p for p in config.sweep.every("p") if p > 0]
    if with_experts:
        mixed_first = min(with_experts)
        raise ValueError(
            f"data.expert_csv is null, but sweep.p={mixed_first} needs expert masks: name them or set sweep.p=[0]"
        )
    tuned = "tuned" in (config.pseudo_masks.thresholds, config.segmentation.thresholds)
    if tuned or config.segmentation.checkpoint == "best":
        raise ValueError(
            "data.expert_csv is null, so nothing can be tuned: set pseudo_masks.thresholds=otsu (or fixed), "
            "segmentation.thresholds=fixed and segmentation.checkpoint=last"
        )


def _mappings_have_every_weak_n(config: "StudyConfig") -> None:
    trial = config.compute.segmentation
    mappings = {
        "segmentation.learning_rate": config.segmentation.learning_rate,
        "segmentation.num_updates": config.segmentation.num_updates,
        "compute.segmentation.num_workers": trial.num_workers,
        "compute.segmentation.num_cpus": trial.num_cpus,
        "compute.segmentation.num_gpus": trial.num_gpus,
    }
    for field, value in mappings.items():
        missing = [n for n in config.sweep.every("weak_n") if n not in value] if isinstance(value, dict) else []
        if missing:
            raise ValueError(f"{field} has no value for weak_n {missing[0]}: add one to the mapping")


def _selection_is_among_the_pathologies(config: "StudyConfig") -> None:
    for name, section in (("classifier", config.classifier), ("encoder_classifier", config.encoder_classifier)):
        unknown = [pathology for pathology in section.selection_pathologies if pathology not in config.data.pathologies]
        if unknown:
            raise ValueError(
                f"{name}.selection_pathologies names {quoted(unknown[0])}, which is missing in data.pathologies"
            )


def _cams_fit_their_classifier(config: "StudyConfig") -> None:
    if config.classifier.architecture == "densenet121":
        return
    if config.cams.fine_grid:
        raise ValueError(
            "cams.fine_grid leaves out DenseNet121's last pooling: set classifier.architecture=densenet121"
        )
    if config.cams.variant == "pre_relu":
        raise ValueError("cams.variant=pre_relu is DenseNet121's norm5: set classifier.architecture=densenet121")


def _initial_weights(config: "StudyConfig") -> dict[str, str]:
    """Return the initial weights of the networks that trials share, by config field."""
    return {
        "classifier.init": config.classifier.init,
        "encoder_classifier.init": config.encoder_classifier.init,
        "moco.init": config.moco.init,
        "irnet.encoder": config.irnet.encoder,
    }


def _initial_weights_are_not_results(config: "StudyConfig") -> None:
    for field, init in _initial_weights(config).items():
        if init in ("chexpert", "moco"):
            raise ValueError(
                f"{field}={init}: the weights are made by this study; begin with random, imagenet or a file"
            )


def _pretraining_names_are_used(config: "StudyConfig") -> None:
    pretraining = config.pretraining
    files = {*config.sweep.every("init"), *_initial_weights(config).values(), *pretraining.imagenet_files.values()}
    encoders = {*config.segmentation.encoders, config.classifier.architecture, IRNET_ENCODER}
    for path in pretraining.normalisation:
        if path not in files:
            guess = did_you_mean(path, sorted(files))
            rule = "which is neither an init nor an ImageNet file of this study"
            raise ValueError(f"pretraining.normalisation names {quoted(path)}, {rule}{guess}")
    for encoder in pretraining.imagenet_files:
        if encoder not in encoders:
            guess = did_you_mean(encoder, sorted(encoders))
            rule = "which is not an encoder of this study"
            raise ValueError(f"pretraining.imagenet_files names {quoted(encoder)}, {rule}{guess}")


def _actors_are_in_order(config: "StudyConfig") -> None:
    for name, section in config.compute:
        if isinstance(section, ActorCompute) and section.max_actors < section.min_actors:
            raise ValueError(f"compute.{name}.max_actors is below min_actors: raise it or lower min_actors")


def _batches_can_be_shared(config: "StudyConfig") -> None:
    """Check that batches can be split over the workers.

    A batch has num_replicas parts and 0, 1 or num_replicas workers. IRNet trains no BatchNorm: any number divides it.
    """
    workers = config.compute.irnet.num_workers
    if config.irnet.batch_size % max(1, workers):
        raise ValueError(
            f"irnet.batch_size={config.irnet.batch_size} is not a multiple of compute.irnet.num_workers={workers}"
        )
    trainings: dict[str, tuple[Any, str, Any]] = {
        "classifier": (config.classifier, "classifier", config.compute.classifier.num_workers),
        "encoder_classifier": (config.encoder_classifier, "classifier", config.compute.classifier.num_workers),
        "moco": (config.moco, "moco", config.compute.moco.num_workers),
        "segmentation": (config.segmentation, "segmentation", config.compute.segmentation.num_workers),
    }
    for name, (section, stage, workers_of_stage) in trainings.items():
        batch_size, parts = section.batch_size, section.num_replicas
        if batch_size % parts or (parts > 1 and batch_size // parts < 2):
            rule = f"cannot be split into num_replicas={parts} parts of two or more images"
            raise ValueError(f"{name}.batch_size={batch_size} {rule}: choose a multiple of num_replicas")
        numbers = workers_of_stage.values() if isinstance(workers_of_stage, dict) else [workers_of_stage]
        wrong = [number for number in numbers if number not in (0, 1, parts)]
        if wrong:
            raise ValueError(f"compute.{stage}.num_workers={wrong[0]} must be 0, 1 or {name}.num_replicas={parts}")
