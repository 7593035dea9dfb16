"""Export a trained network: python jobs/export.py MODEL [--out=FOLDER] [section.field=value ...]

MODEL  a study's YAML file (its best model by validation; overrides go to the study), or the folder of a record (STORE/segmentation/...).
Writes model.json (card), model.safetensors (for smp) and model.pt2 (torch.export, checked against the network) into FOLDER (exported).
Not for clinical use. Exit codes: 0 done, 2 bad model, 75 try again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chexseg_ray.command import run_tool
from chexseg_ray.errors import InputError


def run(name: str, overrides: Sequence[str], words: Sequence[str], out: str) -> int:
    """Export one model."""
    from chexseg_ray.export import open_export, run_export
    from chexseg_ray.models import load_model

    if words:
        raise InputError(f"{words[0]}: one MODEL at a time")
    store = open_export(out)  # before anything that takes long
    return run_export(load_model(name, overrides), store)


if __name__ == "__main__":
    sys.exit(run_tool(__doc__ or "", run, "exported"))
