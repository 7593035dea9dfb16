"""The trained network that a command line names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chexseg_ray.config.parse import load_config
from chexseg_ray.errors import InputError, shortened
from chexseg_ray.predict.card import NOTICE, ExportedModel, export_record, read_model
from chexseg_ray.progress import say
from chexseg_ray.store.filesystem import refuse_credentials
from chexseg_ray.store.store import Store
from chexseg_ray.study.choice import choose
from chexseg_ray.study.sources import load_study

_MOST_SAID = 1500  # characters about a model; a card may hold a text of any length


def load_model(name: str, overrides: Sequence[str] = ()) -> ExportedModel:
    """Load the model that a command line names.

    Args:
        name: a file, which is a study's config and means its best model by validation; the folder of a
            segmentation or evaluation record in a store; or a folder that jobs/export.py wrote.
        overrides: `section.field=value` for a study.

    Raises:
        InputError: the name is none of these, the model is damaged or has a threshold of 0, or the study has no model
            yet.
    """
    refuse_credentials(name, "MODEL")
    model = _load(name, overrides)
    _refuse_whole_images(name, model.card)
    return model


def _refuse_whole_images(name: str, card: Mapping[str, Any]) -> None:
    """Refuse a model with a threshold of 0, above which every score lies, so that the mask is the whole image."""
    thresholds = list(zip(card["pathologies"], card["thresholds"], strict=True))
    zero = [pathology for pathology, threshold in thresholds if threshold <= 0]
    if zero:
        names = ", ".join(map(shortened, zero[:3])) + (f" and {len(zero) - 3} more" if len(zero) > 3 else "")
        rule = f"the threshold of {names} is 0, which makes a mask of the whole image"
        remedy = "train with segmentation.threshold_grid=fine, or segmentation.fixed_threshold above 0 where it is used"
        raise InputError(f"{name}: {rule}: {remedy}")


def _load(name: str, overrides: Sequence[str]) -> ExportedModel:
    """Load a model as load_model, whatever its thresholds."""
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        return _best_of_study(name, overrides)
    if overrides:
        raise InputError(f"{overrides[0]}: {name} is a trained model: overrides go with a study's YAML file")
    plain, _, options = name.partition("?") if "://" in name else (str(Path(name).expanduser().absolute()), "", "")
    root, stage, address = plain.rstrip("/").rsplit("/", 2) if plain.count("/") > 1 else ("", "", "")
    if stage in ("segmentation", "evaluation"):
        store = Store.open(f"{root}?{options}" if options else root, "MODEL")
        record = store.find_address(f"{stage}/{address}")
        if record is not None and stage == "evaluation":
            record = store.find_address(f"segmentation/{record.inputs.get('segmentation', '-')}")
        if record is not None:
            return export_record(store, record, None)
        if stage == "segmentation":
            remedy = "name the folder segmentation/... of a store that holds record.json"
            raise InputError(f"{name}: is not a record of a segmentation network: {remedy}")
    return read_model(name)


def _best_of_study(name: str, overrides: Sequence[str]) -> ExportedModel:
    """The best model of a study by validation; prints which one it is."""
    config = load_config(name, overrides)
    store = Store.open(config.store.root)
    study, _ = load_study(config)
    chosen = choose(study, store.find_all(step.inputs["segmentation"] for _, step in study.points))
    if not chosen:
        rule = f"store.root={store.root} has no trained model with a validation score"
        raise InputError(f"{name}: {rule}: run the study, or name a record")
    best = next(iter(chosen.values()))
    score = f"validation mIoU {best.score:.3f} over {best.trials} trials"
    say(f"best of the study by validation: {best.point.label}, {score}")
    return export_record(store, best.segmentation, config.data.licence)


def describe(card: Mapping[str, Any]) -> list[str]:
    """Describe a model for people: what it was trained on, and that it is not for clinical use.

    Args:
        card: as in ExportedModel.

    Returns:
        Two lines.
    """
    facts = card["trained_on"]
    masks = f"{facts['expert_masks']} expert masks"
    if facts["pseudo_masks"]:
        masks += f", {facts['pseudo_masks']} pseudo masks ({facts['pseudo_mask_method'] or 'of unknown method'})"
    masks += f", p = {facts['p']:g}"
    data = facts["data"]
    if not isinstance(data, str):
        data = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in sorted(data.items()))
    licence = f"; licence: {facts['licence']}" if facts.get("licence") else ""
    encoder = f"encoder from {facts['encoder_initialisation']}"
    said = f"model: {card['record']}, trained on {masks}, {encoder}; data: {data}{licence}"
    return [said if len(said) <= _MOST_SAID else shortened(said, _MOST_SAID), NOTICE]
