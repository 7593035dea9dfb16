"""jobs/predict.py and jobs/export.py: a trained network on X-rays, and as files for use elsewhere."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from chexseg_ray.command import Parser, config_names, find_config, guarded, is_override
from chexseg_ray.config.fields import MODALITY
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.errors import InputError

MODEL = """\
MODEL  a study's YAML file or config name (its best model by validation; overrides go to the study), the folder of a
       record (STORE/segmentation/...), or a folder that jobs/export.py wrote."""
PREDICT = f"""\
Predict X-rays with a trained network. Not for clinical use.

{MODEL}
IMAGE  a PNG, JPEG or DICOM file, a folder of them, a CSV file with a column Path; or a URI of one.
Writes predictions.json (CheXlocalize's format), areas.csv, overlays/, rejects.csv, notes.csv and model.json into
FOLDER."""
EXPORT = f"""\
Export a trained network. Not for clinical use.

{MODEL}
Writes model.json (card), model.safetensors (for smp) and model.pt2 (torch.export, checked against the network) into
FOLDER."""
PREDICT_CODES = "Exit codes: 0 done, 2 bad model or images, 3 some images rejected, 75 try again later."
EXPORT_CODES = "Exit codes: 0 done, 2 bad model, 75 try again later."


def predict(arguments: Sequence[str] | None = None) -> int:
    """Run jobs/predict.py; returns its exit code. `arguments` stand in for the command line's."""
    parser = _parser(PREDICT, PREDICT_CODES, "MODEL | IMAGE | section.field=value", "predictions")
    allow = (
        "predict DICOM files of this Modality too (beside CR, DX, RF, XA), such as OT, or 'FOR PROCESSING' (a "
        "detector's raw data); several with commas, or the flag again"
    )
    parser.add_argument("--allow-modality", metavar="CODE", action="append", default=[], help=allow)
    return guarded(parser, _predict, arguments)


def export(arguments: Sequence[str] | None = None) -> int:
    """Run jobs/export.py; returns its exit code. `arguments` stand in for the command line's."""
    return guarded(_parser(EXPORT, EXPORT_CODES, "MODEL | section.field=value", "exported"), _export, arguments)


def _parser(description: str, codes: str, words: str, out: str) -> Parser:
    parser = Parser(description, codes)
    parser.add_argument("words", nargs="*", metavar=words, help="names that begin with - stand after --")
    parser.add_argument("--out", metavar="FOLDER", default=out, help=f"a folder or URI (default: {out})")
    return parser


def _predict(flags: argparse.Namespace) -> int:
    from chexseg_ray.predict.listing import list_images
    from chexseg_ray.predict.model import load_model
    from chexseg_ray.predict.predict import open_predictions, run_predict

    model, overrides, images = _split(flags)
    allowed = _modalities(flags.allow_modality)
    open_predictions(flags.out)  # before anything that takes long
    x_rays = list_images(images)
    return run_predict(load_model(model, overrides), x_rays, flags.out, allowed)


def _modalities(given: Sequence[str]) -> tuple[str, ...]:
    """The codes of --allow-modality, each once; several may stand in one, with commas."""
    codes = dict.fromkeys(code.strip() for text in given for code in text.split(","))
    for code in codes:
        if not re.fullmatch(MODALITY, code):
            rule = "is no code of a DICOM Modality, such as OT or MG, nor 'FOR PROCESSING'"
            raise InputError(f"--allow-modality {code[:40]!r}: {rule}: correct it")
    return tuple(codes)


def _export(flags: argparse.Namespace) -> int:
    from chexseg_ray.predict.export import open_export, run_export
    from chexseg_ray.predict.model import load_model

    model, overrides, more = _split(flags)
    if more:
        raise InputError(f"{more[0]}: one MODEL at a time")
    store = open_export(flags.out)  # before anything that takes long
    return run_export(load_model(model, overrides), store)


def _split(flags: argparse.Namespace) -> tuple[str, list[str], list[str]]:
    """MODEL, overrides and the other names."""
    if not flags.out:
        raise InputError("--out is empty: name a folder")
    if "" in (*flags.words, *flags.names):
        raise InputError("one of the names is empty: write . for the current folder")
    overrides = [word for word in flags.words if _is_study_override(word)]
    names = [*(word for word in flags.words if not _is_study_override(word)), *flags.names]
    if not names:
        forms = "a study's YAML file, a record's folder (.../segmentation/...) or an exported model's folder"
        raise InputError(f"name a MODEL: {forms}; see --help")
    model = names[0]
    if model in config_names() and not (Path(model) / "model.json").is_file():
        model = str(find_config(model))
    return model, overrides, names[1:]


def _is_study_override(word: str) -> bool:
    """Whether a word sets a field of a study; X-rays may have = in their names."""
    return is_override(word) and word.partition("=")[0].partition(".")[0] in StudyConfig.model_fields
