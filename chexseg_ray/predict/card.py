"""A trained network as two files that are used without this package: a card (JSON) and weights (safetensors).

The card contains what smp needs to build the network, and what a user of the network needs: pathologies, thresholds,
input statistics and size, what it was trained on, and the record that it comes from.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from chexseg_ray.data.encoder_names import check_encoder_name
from chexseg_ray.data.normalisation import STATISTICS
from chexseg_ray.engine.training_state import from_safetensors, to_safetensors
from chexseg_ray.errors import InputError
from chexseg_ray.segmentation.inference import Segmenter
from chexseg_ray.store.filesystem import open_filesystem, storage
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store

FORMAT = "chexseg_ray segmentation model 1"
NOTICE = "Research software: not for clinical use."
CARD, WEIGHTS, PROGRAM = "model.json", "model.safetensors", "model.pt2"
_INPUT = (
    "8-bit grey X-ray, long side resized to `size` (bilinear, antialiased), centred on zeros; "
    "/255, repeated to 3 channels, (x - mean) / std"
)
_NETWORK_FIELDS = (
    "arch",
    "encoder_name",
    "encoder_weights",
    "classes",
    "encoder_output_stride",
    "decoder_atrous_rates",
)
_LONGEST_NAME = 200  # characters of a pathology


@dataclass(frozen=True)
class ExportedModel:
    """A trained network.

    Args:
        card: plain JSON values, as in model.json.
        weights: bytes of a safetensors file; the card contains their sha256.
    """

    card: dict[str, Any]
    weights: bytes


def export_record(store: Store, record: Record, licence: str | None) -> ExportedModel:
    """The network of a segmentation record.

    Args:
        store: contains the record and those that it was made from.
        record: of a segmentation step.
        licence: of the data; None where the study's config is not known.

    Raises:
        InputError: the weights are not those that were written, or facts of a segmentation network are missing.
    """
    from safetensors import SafetensorError

    data = store.read(record, "weights.safetensors")
    try:
        return _export(store, record, licence, data)
    except (KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise InputError(
            f"{record.address}: is not a whole record of a segmentation network ({cause}): delete it and run again"
        ) from None


def _export(store: Store, record: Record, licence: str | None, data: bytes) -> ExportedModel:
    """Card and weights of a record whose weights.safetensors contains `data`."""
    tensors, metadata = from_safetensors(data)
    facts = json.loads(metadata["model"])
    dilation = {}
    if "output_stride" in facts:
        dilation = {
            "encoder_output_stride": facts["output_stride"],
            "decoder_atrous_rates": facts["atrous_rates"],
        }
    network = {
        "arch": facts["architecture"],
        "encoder_name": facts["encoder"],
        "encoder_weights": None,
        "classes": len(facts["pathologies"]),
    }
    thresholds = record.metrics["thresholds"]
    mean, std = STATISTICS[facts["normalisation"]]
    card = {
        "format": FORMAT,
        "notice": NOTICE,
        "smp": network | dilation,
        "pathologies": facts["pathologies"],
        "thresholds": [thresholds[name]["threshold"] for name in facts["pathologies"]],
        "threshold_sources": [thresholds[name]["source"] for name in facts["pathologies"]],
        "normalisation": facts["normalisation"],
        "mean": list(mean),
        "std": list(std),
        "size": facts["size"],
        "input": _INPUT,
        "trained_on": training_facts(store, record, licence),
        "validation_miou": record.metrics["validation_miou"],
        "record": record.address,
        "versions": record.run["versions"],
    }
    weights = to_safetensors(tensors, {"format": "pt"})
    return ExportedModel(card | {"sha256": hashlib.sha256(weights).hexdigest()}, weights)


def training_facts(store: Store, record: Record, licence: str | None) -> dict[str, Any]:
    """What a segmentation record was trained on, as in the card's `trained_on`.

    Args:
        store: contains the record and those that it was made from.
        record: of a segmentation step.
        licence: of the data; None leaves it out.

    Returns:
        Plain JSON values: numbers of masks, mixing, training length, and the data by the sha256 of its files.
    """
    config = record.config
    pseudo_masks = store.find_address(f"pseudo_masks/{record.inputs.get('pseudo_masks', '-')}")
    facts: dict[str, Any] = {
        "expert_masks": record.metrics["expert_ids"],
        "pseudo_masks": record.metrics["weak_ids"],
        "pseudo_mask_method": pseudo_masks.config["method"] if pseudo_masks else None,
        "p": config["p"],
        "encoder_initialisation": config["init"],
        "trial": config["trial"],
        "updates": config["num_updates"],
        "checkpoint_at": record.metrics["best_update"],
        "data": _source_hashes(store, record),
    }
    if licence:
        facts["licence"] = licence
    return facts


def _source_hashes(store: Store, record: Record) -> str | dict[str, str]:
    """The CSV and mask files of the training data as {field: sha256}, or a sentence where there are none."""
    hashes: dict[str, str] = {}
    for role, fingerprint in sorted(record.inputs.items()):
        images = store.find_address(f"images/{fingerprint}") if role.startswith("images_") else None
        manifest = store.find_address(f"manifest/{images.inputs['manifest']}") if images else None
        if manifest is None:
            continue
        if "phantom" in manifest.inputs:
            return "phantom images, drawn by chexseg_ray"
        hashes |= manifest.config["sha256"]
    return hashes or "unknown: its manifests are not in the store"


def write_model(model: ExportedModel, out: Store) -> None:
    """Write card and weights into a folder or URI, the card last.

    Args:
        model: to write.
        out: the folder or URI.
    """
    out.put(WEIGHTS, model.weights)
    out.put(CARD, (json.dumps(model.card, indent=1) + "\n").encode())


def read_model(folder: str) -> ExportedModel:
    """Read what write_model wrote, and check it.

    Args:
        folder: a folder or URI.

    Raises:
        InputError: a file is missing, the card has another format, or the weights are not those of the card.
    """
    filesystem, base = open_filesystem(folder, "MODEL")
    contents = {}
    for name in (CARD, WEIGHTS):
        try:
            with storage("read", f"{base}/{name}"), filesystem.open_input_file(f"{base}/{name}") as stream:
                contents[name] = stream.read()
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{folder}: has no {name}: name a folder that jobs/export.py wrote") from None
    try:
        card = json.loads(contents[CARD])
        _check(card)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cause = " ".join(str(error).split())[:120]
        if isinstance(error, KeyError):
            cause = f"{cause} is missing"
        raise InputError(f"{folder}/{CARD}: is not a card of {FORMAT!r} ({cause}): export the model again") from None
    if hashlib.sha256(contents[WEIGHTS]).hexdigest() != card["sha256"]:
        raise InputError(f"{folder}/{WEIGHTS}: is not the file that {CARD} was written with: export the model again")
    return ExportedModel(card, contents[WEIGHTS])


def _check(card: Any) -> None:
    """Check that a card asks for a network of smp with random weights, and that its values are in range.

    Args:
        card: any JSON value.

    Raises:
        KeyError: a field is missing.
        TypeError, ValueError: a value has the wrong type or is out of range.
    """
    if not isinstance(card, dict) or card["format"] != FORMAT:
        raise ValueError(f"format {card['format']!r}")
    network, names, thresholds = card["smp"], card["pathologies"], card["thresholds"]
    unknown = set(network) - set(_NETWORK_FIELDS)
    arch, encoder = network["arch"], network["encoder_name"]
    if unknown or network["encoder_weights"] is not None or not isinstance(arch, str) or not isinstance(encoder, str):
        raise ValueError(f"smp: {sorted(unknown) or 'weights, or no names'} is not allowed")
    check_encoder_name(encoder)
    if not (isinstance(card["size"], int) and 32 <= card["size"] <= 4096) or card["normalisation"] not in STATISTICS:
        raise ValueError("size or normalisation is out of bounds")
    if not _is_list_of(names, str) or len(set(names)) != len(names) or network["classes"] != len(names):
        raise ValueError("pathologies are not different names, one per class")
    if not all(name.isprintable() and len(name) <= _LONGEST_NAME for name in names):
        raise ValueError("the name of a pathology is too long, or has characters that cannot be drawn")
    if not _is_list_of(thresholds, float) or len(thresholds) != len(names) or not all(0 <= t <= 1 for t in thresholds):
        raise ValueError("thresholds are not one number in [0, 1] for each pathology")
    _check_facts(card["trained_on"])
    for name in ("record", "sha256"):
        if not isinstance(card[name], str):
            raise TypeError(f"{name} is no text")


def _check_facts(facts: Any) -> None:
    """Check what a card says about the training, as far as it is shown. Raises as _check."""
    data, p = facts["data"], facts["p"]
    has_hashes = isinstance(data, dict) and _is_list_of([*data.values()], str)
    if not (isinstance(data, str) or has_hashes):
        raise ValueError("trained_on: data")
    if not isinstance(p, int | float) or not 0 <= p <= 1:
        raise ValueError("trained_on: p is not a number in [0, 1]")
    for name in ("expert_masks", "pseudo_masks"):
        if not isinstance(facts[name], int) or not 0 <= facts[name] < 2**63:
            raise ValueError(f"trained_on: {name} is no number of masks")
    texts = (facts["pseudo_mask_method"], facts["encoder_initialisation"], facts.get("licence"))
    if not all(text is None or isinstance(text, str) for text in texts):
        raise ValueError("trained_on: a text is none")


def _is_list_of(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def open_model(model: ExportedModel, num_gpus: float = 0) -> Segmenter:
    """The network in eval mode, on this process's device.

    Args:
        model: card and weights.
        num_gpus: GPUs that this process may use.

    Raises:
        InputError: the weights do not fit the card's network or are not finite, or the network does not take images of
            the card's size.
    """
    import segmentation_models_pytorch as smp
    import torch
    from safetensors import SafetensorError

    from chexseg_ray.engine.devices import device_for

    card, device = model.card, device_for(num_gpus)
    try:
        network = smp.create_model(**card["smp"])
        tensors = from_safetensors(model.weights)[0]
        own = network.state_dict()
        wrong = [name for name, tensor in tensors.items() if name in own and tensor.dtype != own[name].dtype]
        if wrong:
            raise ValueError(f"{wrong[0]} is of {tensors[wrong[0]].dtype}, expected {own[wrong[0]].dtype}")
        network.load_state_dict(tensors)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise ValueError("weights are not finite")
        with torch.no_grad():
            shape = tuple(network.eval()(torch.zeros(1, 3, card["size"], card["size"])).shape)
        if shape[2:] != (card["size"], card["size"]):
            raise ValueError(f"it turns images of {card['size']} px into maps of {shape[2]} x {shape[3]}")
    except (
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        AssertionError,
        ValueError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise InputError(
            f"{CARD} and {WEIGHTS}: do not go together ({' '.join(str(error).split())[:200]}): export the model again"
        ) from None
    thresholds = np.array(card["thresholds"], dtype=np.float32)
    return Segmenter(
        network.to(device), tuple(card["pathologies"]), thresholds, card["normalisation"], card["size"], device
    )
