"""Write a trained network for use without this package: what jobs/export.py does."""

from chexseg_ray.models import describe
from chexseg_ray.output import open_output
from chexseg_ray.progress import say
from chexseg_ray.stages.exported import CARD, PROGRAM, WEIGHTS, ExportedModel, write_model
from chexseg_ray.stages.program import export_program


def run_export(model: ExportedModel, out: str) -> int:
    """Write a model as card, safetensors and a torch.export program, whose outputs are compared with the network's.

    Raises:
        InputError: the exported program does not give the network's outputs, or `out` cannot be a folder.
    """
    store = open_output(out)
    program, apart = export_program(model)
    write_model(model, store)
    store.put(PROGRAM, program)
    for line in describe(model.card):
        say(line)
    say(f"{store.shown(CARD)}, {WEIGHTS}, {PROGRAM} (its outputs at most {apart:.1e} from the network's)")
    return 0
