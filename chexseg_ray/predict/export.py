"""Write a trained network for use without this package: what jobs/export.py does."""

import json

from chexseg_ray.errors import InputError
from chexseg_ray.predict.card import CARD, FORMAT, PROGRAM, WEIGHTS, ExportedModel, write_model
from chexseg_ray.predict.model import describe
from chexseg_ray.predict.output import open_output
from chexseg_ray.predict.program import export_program
from chexseg_ray.progress import say
from chexseg_ray.store.store import Store


def open_export(out: str) -> Store:
    """Open the folder or URI that an exported model goes to; creates nothing.

    Args:
        out: the folder or URI.

    Raises:
        InputError: it cannot be a folder, or it contains a model that jobs/export.py did not write, or predictions,
            whose card would be overwritten.
    """
    store = open_output(out)
    present = [name for name in (CARD, WEIGHTS, PROGRAM) if store.exists(name)]
    if present and (not _has_export(store) or store.exists("predictions.json")):
        raise InputError(f"--out={out}: has {present[0]}, which jobs/export.py did not write: name another folder")
    return store


def _has_export(store: Store) -> bool:
    """Whether the folder contains a card of this format."""
    try:
        card = json.loads(store.get(CARD))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(card, dict) and card.get("format") == FORMAT


def run_export(model: ExportedModel, store: Store) -> int:
    """Write a model as card, safetensors and a torch.export program, and print what it is.

    Args:
        model: card and weights.
        store: the folder or URI, from open_export.

    Returns:
        Exit code 0.

    Raises:
        InputError: the weights do not fit the card, or the program's outputs differ from the network's.
    """
    program, difference = export_program(model)
    write_model(model, store)
    store.put(PROGRAM, program)
    for line in describe(model.card):
        say(line)
    say(f"{store.shown(CARD)}, {WEIGHTS}, {PROGRAM} (its outputs at most {difference:.1e} from the network's)")
    return 0
