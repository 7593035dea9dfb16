"""A trained network as two things that need nothing of this package: a card (JSON) and weights (safetensors).

The card holds what smp needs to build the network, and what is needed to use it: pathologies, thresholds, input statistics and size,
what it was trained on, and the record that it comes from.
"""

import hashlib
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

    Raises:
        InputError: its weights are not those that were written, or it does not say what a segmentation record says.
    """
    from safetensors import SafetensorError

    data = store.read(record, "weights.safetensors")
    try:
        return _exported(store, record, licence, data)
    except (KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise InputError(f"{record.address}: is no whole record of a segmentation network ({said}): delete it and run again") from None


def _exported(store: Store, record: Record, licence: str | None, data: bytes) -> ExportedModel:
    tensors, metadata = from_safetensors(data)
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
    weights = to_safetensors(tensors, {"format": "pt"})
    return ExportedModel(card | {"sha256": hashlib.sha256(weights).hexdigest()}, weights)


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
    return facts | {"data": _data(store, record)} | ({"licence": licence} if licence else {})


def _data(store: Store, record: Record) -> str | dict[str, str]:
    """The data by what its CSV and mask files hold: {field: sha256}."""
    files: dict[str, str] = {}
    for role, fingerprint in sorted(record.inputs.items()):
        images = store.find_address(f"images/{fingerprint}") if role.startswith("images_") else None
        manifest = store.find_address(f"manifest/{images.inputs['manifest']}") if images else None
        if manifest and "phantom" in manifest.inputs:
            return "phantom images, drawn by chexseg_ray"
        files |= manifest.config["sha256"] if manifest else {}
    return files or "unknown: its manifests are not in the store"


def write_model(model: ExportedModel, out: Store) -> None:
    """Write card and weights into a folder or URI."""
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
        _check(card)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = "lacks " * isinstance(error, KeyError) + " ".join(str(error).split())[:120]
        raise InputError(f"{folder}/{CARD}: is no card of {FORMAT!r} ({said}): export the model again") from None
    if hashlib.sha256(found[WEIGHTS]).hexdigest() != card["sha256"]:
        raise InputError(f"{folder}/{WEIGHTS}: is not the file that {CARD} was written with: export the model again")
    return ExportedModel(card, found[WEIGHTS])


def _check(card: Any) -> None:
    """Refuse a card that asks for anything but a network of smp with random weights, or whose values cannot be."""
    if not isinstance(card, dict) or card["format"] != FORMAT:
        raise ValueError(f"format {card['format']!r}")
    network, names, cuts, facts = card["smp"], card["pathologies"], card["thresholds"], card["trained_on"]
    unknown = set(network) - {"arch", "encoder_name", "encoder_weights", "classes", "encoder_output_stride", "decoder_atrous_rates"}
    arch, encoder = network["arch"], network["encoder_name"]
    if unknown or network["encoder_weights"] is not None or not isinstance(arch, str) or not isinstance(encoder, str):
        raise ValueError(f"smp: {sorted(unknown) or 'weights, or no names'} is not allowed")
    if "hub" in encoder or "/" in encoder:
        raise ValueError(f"smp: {encoder} is not allowed")
    if not (isinstance(card["size"], int) and 32 <= card["size"] <= 4096) or card["normalisation"] not in STATISTICS:
        raise ValueError("size or normalisation is out of bounds")
    if not _are(names, str) or len(set(names)) != len(names) or network["classes"] != len(names):
        raise ValueError("pathologies are no different names, one a class")
    if not _are(cuts, float) or len(cuts) != len(names) or not all(0 <= cut <= 1 for cut in cuts):
        raise ValueError("thresholds are not one number in [0, 1] for each pathology")
    data, p = facts["data"], facts["p"]
    if not (isinstance(data, str) or (isinstance(data, dict) and _are([*data.values()], str))) or not isinstance(facts["expert_masks"], int):
        raise ValueError("trained_on: data or expert_masks")
    if not isinstance(p, int | float) or not 0 <= p <= 1:
        raise ValueError("trained_on: p is no number in [0, 1]")
    for part, name in ((facts, "pseudo_masks"), (facts, "pseudo_mask_method"), (facts, "encoder_initialisation"), (card, "record"), (card, "sha256")):
        part[name]


def _are(values: Any, each: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, each) for value in values)


def open_model(model: ExportedModel) -> Segmenter:
    """The network in eval mode, on the device that there is.

    Raises:
        InputError: the weights are not those of the card's network, or not finite; or it takes no images of the card's size.
    """
    import segmentation_models_pytorch as smp
    import torch
    from safetensors import SafetensorError

    from chexseg_ray.stages.train import training_device

    card, device = model.card, training_device()
    try:
        network = smp.create_model(**card["smp"])
        tensors = from_safetensors(model.weights)[0]
        network.load_state_dict(tensors)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise ValueError("weights are not finite")
        with torch.no_grad():
            shape = tuple(network.eval()(torch.zeros(1, 3, card["size"], card["size"])).shape)
        if shape[2:] != (card["size"], card["size"]):
            raise ValueError(f"it turns images of {card['size']} px into maps of {shape[2]} x {shape[3]}")
    except (KeyError, IndexError, TypeError, AttributeError, AssertionError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{CARD} and {WEIGHTS}: do not go together ({' '.join(str(error).split())[:200]}): export the model again") from None
    thresholds = np.array(card["thresholds"], dtype=np.float32)
    return Segmenter(network.to(device), tuple(card["pathologies"]), thresholds, card["normalisation"], card["size"], device)
