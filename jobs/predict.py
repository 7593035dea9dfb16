"""Predict X-rays: python jobs/predict.py MODEL IMAGE [IMAGE ...] [--out=FOLDER] [section.field=value ...]

MODEL  a study's YAML file (its best model by validation; overrides go to it), a record's folder (STORE/segmentation/...), or jobs/export.py's.
IMAGE  a PNG, JPEG or DICOM file, a folder of them, or a CSV file with a column Path.
Writes predictions.json (CheXlocalize's format), areas.csv, overlays/, rejects.csv, model.json into FOLDER (predictions). Not for clinical use.
Exit codes: 0 done, 2 bad model or images, 3 some images rejected, 75 try again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from chexseg_ray.command import run_tool


def run(name: str, overrides: Sequence[str], images: Sequence[str], out: str) -> int:
    """Predict and say what was found."""
    from chexseg_ray.models import load_model
    from chexseg_ray.predict import open_predictions, run_predict
    from chexseg_ray.xrays import list_images

    open_predictions(out)  # before anything that takes long
    x_rays = list_images(images)
    return run_predict(load_model(name, overrides), x_rays, out)


if __name__ == "__main__":
    sys.exit(run_tool(__doc__ or "", run, "predictions"))
