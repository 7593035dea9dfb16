"""Read a CheXpert-format CSV: paths, patients, views and labels, selected by name and never by position."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from chexseg_ray.data.pathologies import names_of
from chexseg_ray.errors import InputError, quoted, shortened

COLUMNS = (
    "Path",
    "Sex",
    "Age",
    "Frontal/Lateral",
    "AP/PA",
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)

_LABEL_VALUES = {"": np.nan, "1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": -1.0, "-1.0": -1.0}
_FROM_SPLIT_ON = re.compile(r"(?:^|/)((?:train|valid|val|test)/(.+))$")
_CONTROL_CHARACTER_OR_DRIVE = re.compile(r"[\x00-\x1f]|^\w+:")
_VIEW_IN_PATH = re.compile(r"(?i)(?<![a-z])(frontal|lateral)(?![a-z])")
_LONGEST = 300  # characters of a path in a message
_SUFFIX = re.compile(r"\.\w+$")


def read_csv(
    data: bytes, source: str, pathologies: Sequence[str], columns: Mapping[str, Sequence[str]] | None = None
) -> pd.DataFrame:
    """Parse a CheXpert CSV, or the CSV of another data set, whose columns are found by the names given.

    Args:
        data: the file's bytes; UTF-8, with or without BOM, LF or CRLF.
        source: the file's name, for messages.
        pathologies: K names, each a column of the file (Lung Opacity serves Airspace Opacity).
        columns: the names that the file may use for `Path`, `Frontal/Lateral` and pathologies, where they differ,
            preferred first. With a `Patient` column any folder layout works: a path is then relative to the CSV's
            folder, and its cxr_id is the path without its suffix, with / as _.

    Returns:
        One row per image, in file order: `path` (relative to the CSV's folder; in CheXpert's layout it starts at
        train/, valid/, val/ or test/, so that every release's prefix works), `cxr_id`, `patient_id`, `view` (frontal |
        lateral), `view_is_known` (False where neither a column nor the path tells it; `view` is then frontal) and one
        float column per pathology with 1, 0, -1 (uncertain) or NaN (blank).

    Raises:
        InputError: the file breaks a rule; the message names the column or row and the rule.
    """
    table = _parse(data, source)
    accepted = {"Path": ["Path"], "Frontal/Lateral": ["Frontal/Lateral"], **(columns or {})}
    names = {}
    for wanted, options in accepted.items():
        names[wanted] = next((name for name in options if name in table.columns), options[0])
    for wanted, name in names.items():
        is_required = wanted == "Path" or wanted in (columns or {})
        if is_required and name not in table.columns:
            remedy = f"give CheXpert's format, or name the column of {wanted} in data.columns"
            raise InputError(f"{source}: has no column {name!r}: {remedy}")
    if table.empty:
        raise InputError(f"{source}: has no rows: name another file")
    paths = [_checked_path(path, source, row) for row, path in enumerate(table[names["Path"]], start=2)]
    if "Patient" in names:
        out = _named_identities(paths, table[names["Patient"]], source)
    else:
        out = _identities(paths, source)
    _refuse_duplicates(out, source)
    views = _views(table, out["path"], names["Frontal/Lateral"], source)
    out["view"], out["view_is_known"] = [view or "frontal" for view in views], [view is not None for view in views]
    for pathology in pathologies:
        options = (names[pathology],) if pathology in names else names_of(pathology)
        out[pathology] = _labels(table, pathology, options, source)
    return out


def read_paths(data: bytes, source: str) -> list[str]:
    """Read the column Path of a CSV.

    Args:
        data: the file's bytes, as in `read_csv`.
        source: the file's name, for messages.

    Returns:
        The paths, unchanged, in file order.

    Raises:
        InputError: the file breaks a rule; the message names the column or row and the rule.
    """
    table = _parse(data, source)
    if "Path" not in table.columns:
        raise InputError(f"{source}: has no 'Path' column: write one path per row below Path")
    if table.empty:
        raise InputError(f"{source}: has no rows: write one path per row below Path")
    return [_checked_path(path, source, row) for row, path in enumerate(table["Path"], start=2)]


def below_split(path: str) -> str:
    """Return the part of a path that starts at train/, valid/, val/ or test/, or the whole path if it has none."""
    match = _FROM_SPLIT_ON.search(path)
    return match.group(1) if match else path


def _identities(paths: Sequence[str], source: str) -> pd.DataFrame:
    """Derive path, cxr_id and patient_id from CheXpert's layout: train/patient/study/view."""
    matches = [_FROM_SPLIT_ON.search(path) for path in paths]
    for row, (path, match) in enumerate(zip(paths, matches, strict=True), start=2):
        if match is None:
            rule = "names no train/, valid/, val/ or test/ folder"
            remedy = "give CheXpert's layout, or name the column of patients as Patient in data.columns"
            raise InputError(f"{source} row {row}: Path '{shortened(path, _LONGEST)}' {rule}: {remedy}")
    below = [match.group(2) for match in matches if match]
    out = pd.DataFrame({"path": [match.group(1) for match in matches if match]})
    out["cxr_id"] = [_cxr_id(path) for path in below]
    out["patient_id"] = [path.split("/", 1)[0] for path in below]
    return out


def _named_identities(paths: Sequence[str], patients: pd.Series, source: str) -> pd.DataFrame:
    """Derive path and cxr_id from paths of any layout; patient_id comes from a column."""
    for row, patient in enumerate(patients, start=2):
        if not patient.strip():
            rule = "a patient belongs to one split, so every row must name its patient"
            raise InputError(f"{source} row {row}: {patients.name} is blank: {rule}: fill the cell")
    ids = [_cxr_id(path) for path in paths]
    return pd.DataFrame({"path": paths, "cxr_id": ids, "patient_id": [patient.strip() for patient in patients]})


def _cxr_id(path: str) -> str:
    """Turn a path into an id: without its suffix, with / as _."""
    return _SUFFIX.sub("", path).replace("/", "_")


def _parse(data: bytes, source: str) -> pd.DataFrame:
    """Parse a CSV with every cell as text.

    Every row must be as long as the header, so that a truncated file cannot pass for one with blank labels.
    """
    remedy = "give CheXpert's format"
    try:
        rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{source}: no CSV that can be read ({error}): {remedy}") from None
    while rows and not rows[-1]:
        rows.pop()
    if not rows:
        raise InputError(f"{source}: no CSV that can be read (it is empty): {remedy}")
    names = rows[0]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{source}: has two columns {quoted(name)}: remove one")
        seen.add(name)
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            fault = f"has {len(row)} cells, the header {len(names)}"
            raise InputError(f"{source} row {number}: {fault}: the file is cut or damaged")
    # object, not Arrow's strings: iterating over an Arrow column of 1,000,000 rows takes 20 times as long
    return pd.DataFrame(rows[1:], columns=names, dtype=object)


def _checked_path(path: str, source: str, row: int) -> str:
    """Return the path if it is a plain relative path that stays below its folder; raise InputError if not."""
    is_absolute = path.startswith(("/", "\\"))
    climbs = ".." in path.replace("\\", "/").split("/")
    if not path or is_absolute or climbs or _CONTROL_CHARACTER_OR_DRIVE.search(path):
        rule = "leaves the data root or is not a plain relative path"
        raise InputError(f"{source} row {row}: Path '{shortened(path, _LONGEST)}' {rule}: correct the row")
    return path


def _refuse_duplicates(identities: pd.DataFrame, source: str) -> None:
    """Raise InputError if two rows have the same path, or two paths that give the same cxr_id."""
    ids, paths = identities["cxr_id"], identities["path"]
    repeated = ids.duplicated()
    if not repeated.any():
        return
    row = int(np.flatnonzero(repeated.to_numpy())[0])
    first = int(np.flatnonzero((ids == ids.iloc[row]).to_numpy())[0])
    if paths.iloc[first] == paths.iloc[row]:
        path = shortened(paths.iloc[row], _LONGEST)
        raise InputError(f"{source} row {row + 2}: Path '{path}' repeats row {first + 2}: remove one row")
    one, other, cxr_id = (shortened(text, _LONGEST) for text in (paths.iloc[first], paths.iloc[row], ids.iloc[row]))
    both = f"Paths '{one}' (row {first + 2}) and '{other}' (row {row + 2})"
    raise InputError(f"{source}: {both} give the same cxr_id '{cxr_id}': rename one file or remove one row")


def _views(table: pd.DataFrame, paths: pd.Series, column: str, source: str) -> Sequence[str | None]:
    """Read the view of every row (frontal | lateral) from its column, or from the path where the column is absent.

    Returns:
        frontal | lateral of each row; None where there is no column and the path does not tell.
    """
    if column not in table.columns:  # CheXlocalize's test_labels.csv has the view in the file name only
        found = [_VIEW_IN_PATH.findall(path) for path in paths]
        return [words[-1].lower() if words else None for words in found]
    views = [view.strip().lower() for view in table[column]]
    for row, view in enumerate(views, start=2):
        if view not in ("frontal", "lateral"):
            raise InputError(f"{source} row {row}: {column} is {quoted(view)}: write Frontal or Lateral")
    return views


def _labels(table: pd.DataFrame, pathology: str, names: Sequence[str], source: str) -> npt.NDArray[np.float64]:
    """Read the labels of a pathology, float64 [rows], from the first of its names that the table has."""
    column = next((name for name in names if name in table.columns), None)
    if column is None:
        options = " or ".join(repr(name) for name in names)
        remedy = f"correct the file or data.pathologies, or name {pathology!r} in data.columns"
        raise InputError(f"{source}: has no column {options}: {remedy}")
    texts = table[column].tolist()
    values = [_LABEL_VALUES.get(text.strip()) for text in texts]
    if None in values:
        row = values.index(None)
        raise InputError(f"{source} row {row + 2}: {column} is {quoted(texts[row])}: a label is 1, 0, -1 or blank")
    return np.asarray(values, dtype=np.float64)


def refuse_shared_patients(patients: dict[str, Iterable[str]]) -> None:
    """Check that no patient is in two source files.

    Args:
        patients: the patient ids of each file, by the file's name.

    Raises:
        InputError: two files share patients; the message names the files and the first ten patients.
    """
    names = list(patients)
    sets = {name: set(ids) for name, ids in patients.items()}
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = sorted(sets[first] & sets[second])
            if shared:
                fault = f"share {len(shared)} patients ({', '.join(map(shortened, shared[:10]))})"
                remedy = "keep each patient in one split: remove the rows from one file"
                raise InputError(f"{first} and {second} {fault}: {remedy}")
