"""A trained network as two things that need nothing of this package: a card (JSON) and weights (safetensors).

The card holds what smp needs to build the network, and what is needed to use it: pathologies, thresholds, input statistics and size,
what it was trained on, and the record that it comes from.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from chexseg_ray.artifacts import Record, Store, open_filesystem, storage
from chexseg_ray.data.normalisation import STATISTICS
from chexseg_ray.errors import InputError
from chexseg_ray.segmentation.inference import Segmenter
from chexseg_ray.stages.training_state import from_safetensors, to_safetensors

FORMAT = "chexseg_ray segmentation model 1"
NOTICE = "Research software: not for clinical use."
CARD, WEIGHTS, PROGRAM = "model.json", "model.safetensors", "model.pt2"
_GEOMETRY = "8-bit grey X-ray, long side resized to `size` (bilinear, antialiased), centred on zeros; /255, repeated to 3 channels, (x - mean) / std"


@dataclass(frozen=True)
class ExportedModel:
    """The card and the bytes of the weights."""

    card: dict[str, Any]
    weights: bytes


def export_record(store: Store, record: Record, licence: str | None) -> ExportedModel:
    """The network of a segmentation record.

    Args:
        store: that holds it and what it was made from.
        record: of a segmentation step.
        licence: of the data, where the study's config is known.
    """
    tensors, metadata = from_safetensors(store.read(record, "weights.safetensors"))
    facts = json.loads(metadata["model"])
    own = {"encoder_output_stride": facts["output_stride"], "decoder_atrous_rates": facts["atrous_rates"]} if "output_stride" in facts else {}
    network = {"arch": facts["architecture"], "encoder_name": facts["encoder"], "encoder_weights": None, "classes": len(facts["pathologies"])}
    chosen = record.metrics["thresholds"]
    mean, std = STATISTICS[facts["normalisation"]]
    card = {
        "format": FORMAT,
        "notice": NOTICE,
        "smp": network | own,
        "pathologies": facts["pathologies"],
        "thresholds": [chosen[name]["threshold"] for name in facts["pathologies"]],
        "threshold_sources": [chosen[name]["source"] for name in facts["pathologies"]],
        "normalisation": facts["normalisation"],
        "mean": list(mean),
        "std": list(std),
        "size": facts["size"],
        "input": _GEOMETRY,
        "trained_on": training_facts(store, record, licence),
        "validation_miou": record.metrics["validation_miou"],
        "record": record.address,
        "versions": record.run["versions"],
    }
    return ExportedModel(card, to_safetensors(tensors, {"format": "pt"}))


def training_facts(store: Store, record: Record, licence: str | None) -> dict[str, Any]:
    """What a segmentation record was trained on: images, masks, mixing, and the data by the content of its files."""
    config, masks = record.config, store.find_address(f"pseudo_masks/{record.inputs.get('pseudo_masks', '-')}")
    facts: dict[str, Any] = {
        "expert_masks": record.metrics["expert_ids"],
        "pseudo_masks": record.metrics["weak_ids"],
        "pseudo_mask_method": masks.config["method"] if masks else None,
        "p": config["p"],
        "encoder_initialisation": config["init"],
        "trial": config["trial"],
        "updates": config["num_updates"],
        "checkpoint_at": record.metrics["best_update"],
    }
    images = next((fingerprint for role, fingerprint in record.inputs.items() if role in ("images_expert_train", "images_weak")), None)
    found = store.find_address(f"images/{images}")
    manifest = store.find_address(f"manifest/{found.inputs['manifest']}") if found else None
    if manifest is None:
        data: Any = "unknown: its manifest is not in the store"
    elif "phantom" in manifest.inputs:
        data = "phantom images, drawn by chexseg_ray"
    else:
        data = {"sha256": manifest.config["sha256"]}
    return facts | {"data": data} | ({"licence": licence} if licence else {})


def write_model(model: ExportedModel, folder: str) -> None:
    """Write card and weights into a folder or URI."""
    out = Store.open(folder)
    out.put(WEIGHTS, model.weights)
    out.put(CARD, (json.dumps(model.card, indent=1) + "\n").encode())


def read_model(folder: str) -> ExportedModel:
    """Read what write_model wrote.

    Raises:
        InputError: a file is not there, or the card is another format's.
    """
    filesystem, base = open_filesystem(folder, "MODEL")
    found = {}
    for name in (CARD, WEIGHTS):
        try:
            with storage("read", f"{base}/{name}"), filesystem.open_input_file(f"{base}/{name}") as stream:
                found[name] = stream.read()
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{folder}: has no {name}: name a folder that jobs/export.py wrote") from None
    try:
        card = json.loads(found[CARD])
    except (ValueError, RecursionError):
        card = None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise InputError(f"{folder}/{CARD}: is no card of {FORMAT!r}: export the model again")
    return ExportedModel(card, found[WEIGHTS])


def open_model(model: ExportedModel) -> Segmenter:
    """The network in eval mode, on the device that there is.

    Raises:
        InputError: the weights are not those of the card's network.
    """
    import segmentation_models_pytorch as smp

    from chexseg_ray.stages.train import training_device

    card, device = model.card, training_device()
    try:
        network = smp.create_model(**card["smp"])
        network.load_state_dict(from_safetensors(model.weights)[0])
        thresholds = np.array(card["thresholds"], dtype=np.float32)
        if len(thresholds) != len(card["pathologies"]) or card["normalisation"] not in STATISTICS:
            raise ValueError("thresholds or normalisation do not fit")
        names, size = tuple(card["pathologies"]), int(card["size"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{CARD} and {WEIGHTS}: do not go together ({' '.join(str(error).split())[:200]}): export the model again") from None
    return Segmenter(network.eval().to(device), names, thresholds, card["normalisation"], size, device)
