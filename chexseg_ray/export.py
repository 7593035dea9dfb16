"""Write a trained network for use without this package: what jobs/export.py does."""

import json

from chexseg_ray.artifacts import Store
from chexseg_ray.errors import InputError
from chexseg_ray.models import describe
from chexseg_ray.output import open_output
from chexseg_ray.progress import say
from chexseg_ray.stages.exported import CARD, FORMAT, PROGRAM, WEIGHTS, ExportedModel, write_model
from chexseg_ray.stages.program import export_program


def open_export(out: str) -> Store:
    """The folder or URI that an exported model goes to; nothing is created yet.

    Raises:
        InputError: it cannot be one, or holds a model that is none of ours, or predictions, whose card would be lost.
    """
    store = open_output(out)
    there = [name for name in (CARD, WEIGHTS, PROGRAM) if store.exists(name)]
    if there and (not _is_ours(store) or store.exists("predictions.json")):
        raise InputError(f"--out={out}: has {there[0]}, which jobs/export.py did not write: name another folder")
    return store


def _is_ours(store: Store) -> bool:
    try:
        card = json.loads(store.get(CARD))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(card, dict) and card.get("format") == FORMAT


def run_export(model: ExportedModel, store: Store) -> int:
    """Write a model as card, safetensors and a torch.export program, whose outputs are compared with the network's.

    Raises:
        InputError: the exported program does not give the network's outputs.
    """
    program, apart = export_program(model)
    write_model(model, store)
    store.put(PROGRAM, program)
    for line in describe(model.card):
        say(line)
    say(f"{store.shown(CARD)}, {WEIGHTS}, {PROGRAM} (its outputs at most {apart:.1e} from the network's)")
    return 0
