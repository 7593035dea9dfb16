"""The trained network that a command line names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chexseg_ray.artifacts import Store
from chexseg_ray.build import load_study
from chexseg_ray.choice import choose
from chexseg_ray.config import load_config
from chexseg_ray.errors import InputError
from chexseg_ray.progress import say
from chexseg_ray.stages.exported import NOTICE, ExportedModel, export_record, read_model


def load_model(name: str, overrides: Sequence[str] = ()) -> ExportedModel:
    """The model that a command line names.

    Args:
        name: a study's YAML file (the best model of the study, by validation), the folder of a segmentation record in a store or of the
            evaluation of one, or a folder that jobs/export.py wrote.
        overrides: `section.field=value` for a study.

    Raises:
        InputError: it is none of these, or the study has no model yet.
    """
    if name.endswith((".yaml", ".yml")):
        return _best_of_study(name, overrides)
    if overrides:
        raise InputError(f"{overrides[0]}: {name} is a model as it was trained; overrides go with a study's YAML file")
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
            raise InputError(f"{name}: is no record of a segmentation network: name the folder segmentation/... of a store that holds record.json")
    return read_model(name)


def _best_of_study(name: str, overrides: Sequence[str]) -> ExportedModel:
    config = load_config(name, overrides)
    store = Store.open(config.store.root)
    study, _ = load_study(config)
    chosen = choose(study, store.find_all(step.inputs["segmentation"] for _, step in study.points))
    if not chosen:
        raise InputError(f"{name}: store.root={store.root} has no trained model with a validation score: run the study, or name a record")
    best = next(iter(chosen.values()))
    say(f"best of the study by validation: {best.point.label}, validation mIoU {best.score:.3f} over {best.trials} trials")
    return export_record(store, best.segmentation, config.data.licence)


def describe(card: Mapping[str, Any]) -> list[str]:
    """What a model was trained on, for people, and that it is not for clinical use."""
    facts = card["trained_on"]
    pseudo = f", {facts['pseudo_masks']} pseudo masks ({facts['pseudo_mask_method'] or 'of unknown method'})" if facts["pseudo_masks"] else ""
    data = facts["data"] if isinstance(facts["data"], str) else ", ".join(f"{name} {sha[:12]}" for name, sha in sorted(facts["data"].items()))
    licence = f"; licence: {facts['licence']}" if facts.get("licence") else ""
    masks = f"{facts['expert_masks']} expert masks{pseudo}, p = {facts['p']:g}"
    return [f"model: {card['record']}, trained on {masks}, encoder from {facts['encoder_initialisation']}; data: {data}{licence}", NOTICE]
