"""Read a CheXpert-format CSV: paths, patients, views and labels, selected by name and never by position."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from chexseg_ray.data.pathologies import names_of
from chexseg_ray.errors import InputError

COLUMNS = (
    "Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity",
    "Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other",
    "Fracture", "Support Devices",
)  # fmt: skip

_LABELS = {"": np.nan, "1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": -1.0, "-1.0": -1.0}
_BELOW_SPLIT = re.compile(r"(?:^|/)((?:train|valid|val|test)/(.+))$")


def read_csv(data: bytes, source: str, pathologies: Sequence[str], columns: Mapping[str, Sequence[str]] | None = None) -> pd.DataFrame:
    """Parse a CheXpert CSV, or that of another data set by the names of its columns.

    Args:
        data: the file's bytes; UTF-8, with or without BOM, LF or CRLF.
        source: the file's name, for messages.
        pathologies: K names, each a column of the file (Lung Opacity serves Airspace Opacity).
        columns: the names that the file may use for `Path`, `Frontal/Lateral` and pathologies, where they differ, preferred first. With a
            `Patient` column any folder layout will do: a path is then relative to the CSV's folder, and an id is the path without its
            ending, / as _.

    Returns:
        One row an image, in file order: `path` (relative to the CSV's folder, in CheXpert's layout from train/, valid/, val/ or test/ on, so
        that every release's prefix works), `cxr_id`, `patient_id`, `view` (frontal | lateral) and one float column a pathology
        with 1, 0, -1 (uncertain) or NaN (blank).

    Raises:
        InputError: with the column or row and the rule, for every fault of the file.
    """
    table, named = _parse(data, source), {"Path": ["Path"], "Frontal/Lateral": ["Frontal/Lateral"], **(columns or {})}
    names = {wanted: next((name for name in own if name in table.columns), own[0]) for wanted, own in named.items()}
    for wanted, name in names.items():
        if name not in table.columns and (wanted == "Path" or wanted in (columns or {})):
            raise InputError(f"{source}: has no column {name!r}: give CheXpert's format, or name the column of {wanted} in data.columns")
    if table.empty:
        raise InputError(f"{source}: has no rows: name another file")
    paths = [_checked_path(path, source, row) for row, path in enumerate(table[names["Path"]], start=2)]
    out = _identities(paths, source) if "Patient" not in names else _named_identities(paths, table[names["Patient"]], source)
    _refuse_duplicates(out["cxr_id"], source)
    out["view"] = _views(table, out["cxr_id"], names["Frontal/Lateral"], source)
    for pathology in pathologies:
        out[pathology] = _labels(table, pathology, (names[pathology],) if pathology in names else names_of(pathology), source)
    return out


def read_paths(data: bytes, source: str) -> list[str]:
    """The images that a CSV with a column Path names, as they stand there.

    Raises:
        InputError: with the column or row and the rule.
    """
    table = _parse(data, source)
    if "Path" not in table.columns or table.empty:
        raise InputError(f"{source}: has no {'rows' if 'Path' in table.columns else repr('Path') + ' column'}: write one path a row below Path")
    return [_checked_path(path, source, row) for row, path in enumerate(table["Path"], start=2)]


def below_split(path: str) -> str:
    """A path of any CheXpert release from train/, valid/, val/ or test/ on; another one as it stands."""
    part = _BELOW_SPLIT.search(path)
    return part.group(1) if part else path


def _identities(paths: Sequence[str], source: str) -> pd.DataFrame:
    """path, cxr_id and patient_id in CheXpert's layout: train/patient/study/view."""
    parts = [_BELOW_SPLIT.search(path) for path in paths]
    for row, (path, part) in enumerate(zip(paths, parts, strict=True), start=2):
        if part is None:
            raise InputError(
                f"{source} row {row}: Path {path!r} names no train/, valid/, val/ or test/ folder: give CheXpert's layout, "
                "or name the column of patients as Patient in data.columns"
            )
    below = [part.group(2) for part in parts if part]
    out = pd.DataFrame({"path": [part.group(1) for part in parts if part]})
    out["cxr_id"] = [re.sub(r"\.\w+$", "", name).replace("/", "_") for name in below]
    out["patient_id"] = [name.split("/", 1)[0] for name in below]
    return out


def _named_identities(paths: Sequence[str], patients: pd.Series, source: str) -> pd.DataFrame:
    """path, cxr_id and patient_id in any layout."""
    for row, patient in enumerate(patients, start=2):
        if not patient.strip():
            raise InputError(f"{source} row {row}: {patients.name} is blank: a patient belongs to one split, so each row names one")
    ids = [re.sub(r"\.\w+$", "", path).replace("/", "_") for path in paths]
    return pd.DataFrame({"path": paths, "cxr_id": ids, "patient_id": [patient.strip() for patient in patients]})


def _parse(data: bytes, source: str) -> pd.DataFrame:
    """All cells as text. A row is as long as the header, so that a file that was cut cannot pass for blank labels."""
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{source}: no CSV that can be read ({error}): give CheXpert's format") from None
    while rows and not rows[-1]:
        rows.pop()
    if not rows:
        raise InputError(f"{source}: no CSV that can be read (it is empty): give CheXpert's format")
    names = rows[0]
    repeated = [name for i, name in enumerate(names) if name in names[:i]]
    if repeated:
        raise InputError(f"{source}: has two columns {repeated[0]!r}: remove one")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            raise InputError(f"{source} row {number}: has {len(row)} cells, the header {len(names)}: the file is cut or damaged")
    return pd.DataFrame(rows[1:], columns=names, dtype=object)  # a list of 1,000,000 str, not an Arrow column: iterating one takes 20 times as long


def _checked_path(path: str, source: str, row: int) -> str:
    if not path or path.startswith(("/", "\\")) or ".." in path.replace("\\", "/").split("/") or re.search(r"[\x00-\x1f]|^\w+:", path):
        raise InputError(f"{source} row {row}: Path {path!r} leaves the data root or is no plain relative path: correct the row")
    return path


def _refuse_duplicates(ids: pd.Series, source: str) -> None:
    repeated = ids.duplicated()
    if repeated.any():
        row = int(np.flatnonzero(repeated.to_numpy())[0])
        raise InputError(f"{source} row {row + 2}: Path of {ids.iloc[row]!r} stands twice: remove one row")


def _views(table: pd.DataFrame, ids: pd.Series, name: str, source: str) -> list[str]:
    if name not in table.columns:  # CheXlocalize's test_labels.csv: only the file name tells
        return ["lateral" if name.endswith("lateral") else "frontal" for name in ids]
    views = [view.strip().lower() for view in table[name]]
    for row, view in enumerate(views, start=2):
        if view not in ("frontal", "lateral"):
            raise InputError(f"{source} row {row}: {name} is {view!r}: write Frontal or Lateral")
    return views


def _labels(table: pd.DataFrame, pathology: str, names: Sequence[str], source: str) -> npt.NDArray[np.float64]:
    column = next((name for name in names if name in table.columns), None)
    if column is None:
        near = " or ".join(repr(name) for name in names)
        raise InputError(f"{source}: has no column {near}: correct the file or data.pathologies, or name {pathology!r} in data.columns")
    texts = table[column].tolist()
    values = [_LABELS.get(text.strip()) for text in texts]
    if None in values:
        row = values.index(None)
        raise InputError(f"{source} row {row + 2}: {column} is {texts[row]!r}: a label is 1, 0, -1 or blank")
    return np.asarray(values, dtype=np.float64)


def refuse_shared_patients(patients: dict[str, Iterable[str]]) -> None:
    """No patient may stand in two source files.

    Raises:
        InputError: naming the files and the first patients.
    """
    names = list(patients)
    sets = {name: set(ids) for name, ids in patients.items()}
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = sorted(sets[first] & sets[second])
            if shared:
                raise InputError(f"{first} and {second} share {len(shared)} patients ({', '.join(shared[:10])}): a patient belongs to one split")
