"""Decide which images are in one split, with which labels and expert masks.

The step takes the CSV of the split and, except for the weak split, its file of expert masks. It checks them, draws the
split by patient where several splits share a file, and writes one row for each image. It does not decode images; it
reads only their sizes from their headers, to compare them with the masks.

INPUT   CSV rows {Path, ..., labels}; mask JSON {cxr_id: {pathology: RLE or polygons}}
OUTPUT  manifest.parquet {cxr_id, patient_id, path, view, height, width, labels int8[K], rle_original[K]}, sorted by
        cxr_id: `path` is relative to the CSV's folder; labels are 1, 0, -1 (uncertain) or null (blank); height, width
        (in pixels) and masks are null in the weak split
FAN-OUT one row an image; in the driver, before Ray starts
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs

from chexseg_ray.data.chexpert import refuse_shared_patients
from chexseg_ray.data.dicom import DICOM_SUFFIXES, is_dicom, require_pydicom
from chexseg_ray.data.mask_checks import mask_lines, refuse_absent_masks
from chexseg_ray.data.masks import area_share, is_empty
from chexseg_ray.data.splits import split_by_patient
from chexseg_ray.data.xrays import xray_size
from chexseg_ray.engine.execution import Made, Task
from chexseg_ray.engine.source_tables import Masks, SourceTables
from chexseg_ray.engine.tables import manifest_schema
from chexseg_ray.errors import InputError, shortened
from chexseg_ray.progress import say
from chexseg_ray.store.filesystem import Source, storage

_HEADER_BYTES = 65_536  # read of an image first; they hold its size, unless long EXIF data come before it


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that determine which images are in a split: the step's hashed config.

    Args:
        split: weak | expert_train | validation | test.
        pathologies: K names, in channel order.
        views: frontal, lateral, or both.
        columns: {the name here: the names that the files may use for it, preferred first}.
        num_validation: number of expert images of the split `validation`.
        num_test: number of expert images of the split `test` where it has no files of its own; None where it has.
        split_seed: the seed of the order in which patients are assigned.
        sha256: {field of `data`: hash} of the user's files; empty for phantoms. They identify the files.
        files: the files' paths below the phantom's folder; empty where the user has the data. They identify the files.
    """

    split: str
    pathologies: Sequence[str]
    views: Sequence[str]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    num_validation: int = 0
    num_test: int | None = None
    split_seed: int = 0
    sha256: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[str] = ()


def make(task: Task) -> Made:
    """Read and check the files, and write the split's rows.

    Args:
        task: the step to make; its sources are files of the data root.

    Returns:
        manifest.parquet; `rows` counts the split's images. The metrics are the number of patients, and of
        each pathology's positive labels and masks.

    Raises:
        InputError, TransientError: as select_rows.
    """
    settings = Settings(**task.step.config)
    table, masks = select_rows(task.execution.tables, task.open_source(), task.execution.files, settings)
    for line in describe_masks(table, masks, settings):
        say(f"  {line}")
    table = table.sort_values("cxr_id")
    entry = task.attempt.write_table("manifest.parquet", _to_arrow(table, masks, settings.pathologies))
    return Made([entry], rows=len(table), metrics=_summary(table, masks, settings.pathologies))


def select_rows(
    tables: SourceTables, source: Source, files: Mapping[str, str | None], settings: Settings
) -> tuple[pd.DataFrame, Masks]:
    """Select the rows of a split from its CSV.

    Args:
        tables: the files that were parsed so far.
        source: the data root.
        files: paths below the data root, by field of the config's `data` section.
        settings: the settings of the split's manifest step.

    Returns:
        The split's rows as SourceTables.csv has them, in the CSV's order, and the masks of all images in the mask file
        (empty for the weak split).

    Raises:
        InputError: a file has a fault, files contradict each other, no image is left, or there are DICOM files and
            pydicom is not installed.
    """
    csv_name, masks_name = split_files(settings.split, files)
    table = tables.csv(source, csv_name, settings.pathologies, settings.columns)
    _refuse_outside(source, csv_name, table["path"])
    dicom = next((path for path in table["path"] if path.lower().endswith(DICOM_SUFFIXES)), None)
    if dicom:
        require_pydicom(f"{csv_name}: {dicom}")
    in_view = table["view"].isin(settings.views)
    masks: Masks = {}
    if masks_name is None:
        _refuse_unknown_views(csv_name, table, settings)
        table = table[in_view]
    else:
        masks = tables.masks(source, masks_name, settings.pathologies, settings.columns)
        is_annotated = _annotated(table, masks, csv_name, masks_name)
        _refuse_unknown_views(csv_name, table[is_annotated], settings)
        table = table[is_annotated & in_view]
        labels, shares = _labels_and_shares(table, masks, settings.pathologies)
        refuse_absent_masks(labels, shares, settings.pathologies, f"{masks_name} and {csv_name}")
        if settings.split != "test" or files["test_csv"] is None:
            table = table[_expert_splits(table, masks, settings) == settings.split]
        _refuse_other_sizes(source, csv_name, masks_name, table, masks)
    if table.empty:
        remedy = "check data.views, num_validation and num_test"
        raise InputError(f"{csv_name}: no image is left for the split {settings.split!r}: {remedy}")
    return table, masks


def split_files(split: str, files: Mapping[str, str | None]) -> tuple[str, str | None]:
    """Find the files of a split.

    Args:
        split: weak | expert_train | validation | test.
        files: paths below the data root, by field of the config's `data` section.

    Returns:
        The paths of its CSV and of its mask file, which is None for the weak split.
    """
    if split == "weak":
        csv_name, masks_name = files["weak_csv"], None
    elif split == "test" and files["test_csv"] is not None:
        csv_name, masks_name = files["test_csv"], files["test_masks"]
    else:
        csv_name, masks_name = files["expert_csv"], files["expert_masks"]
    assert csv_name is not None, split
    return csv_name, masks_name


def check_sources(
    tables: SourceTables,
    source: Source,
    files: Mapping[str, str | None],
    pathologies: Sequence[str],
    columns: Mapping[str, Sequence[str]],
) -> None:
    """Refuse a patient in two of the CSV files, which no single manifest step can see.

    Args:
        tables: the files that were parsed so far.
        source: the data root.
        files: paths below the data root, by field of the config's `data` section.
        pathologies: K names.
        columns: {the name here: the names that the files may use for it, preferred first}.

    Raises:
        InputError: a file has a fault, or a patient is in two of them; names files and patients.
    """
    patients: dict[str, Iterable[str]] = {}
    for field_name in ("weak_csv", "expert_csv", "test_csv"):
        name = files[field_name]
        if name is not None:
            patients[name] = tables.csv(source, name, pathologies, columns)["patient_id"]
    refuse_shared_patients(patients)


def _refuse_unknown_views(csv_name: str, table: pd.DataFrame, settings: Settings) -> None:
    """Refuse rows whose view nothing tells, if only one view is used.

    Args:
        csv_name: the CSV's path below the data root.
        table: rows of it, with their places in it as index.
        settings: the settings of the split's manifest step.

    Raises:
        InputError: names the first such row.
    """
    unknown = table[~table["view_is_known"]]
    if len(settings.views) < 2 and len(unknown):
        rule = f"Path '{shortened(unknown['path'].iloc[0], 300)}' does not say frontal or lateral, and no column does"
        remedy = "name the column of Frontal/Lateral in data.columns, or set data.views=[frontal, lateral]"
        raise InputError(f"{csv_name} row {unknown.index[0] + 2}: {rule}: {remedy}")


def _labels_and_shares(
    table: pd.DataFrame, masks: Masks, pathologies: Sequence[str]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The labels of annotated rows, and the areas of their masks as shares of the image, both float64 [N, K]."""
    shares = [[area_share(masks[cxr_id][name]) for name in pathologies] for cxr_id in table["cxr_id"]]
    shape = (len(table), len(pathologies))
    return table[list(pathologies)].to_numpy(dtype=np.float64), np.array(shares, dtype=np.float64).reshape(shape)


def describe_masks(table: pd.DataFrame, masks: Masks, settings: Settings) -> list[str]:
    """Lines about the masks of a split's rows, which show wrong ones before anything is trained.

    Args:
        table: the rows of select_rows.
        masks: the masks of select_rows.
        settings: the settings of the split's manifest step.

    Returns:
        Number and mean area of each pathology's masks, and how many contradict the labels; nothing for the weak split.
    """
    if not masks:
        return []
    return mask_lines(settings.split, *_labels_and_shares(table, masks, settings.pathologies), settings.pathologies)


def _refuse_outside(source: Source, csv_name: str, paths: pd.Series) -> None:
    """Refuse a row whose image lies outside of the data root; on a local root a symbolic link can lead there.

    Args:
        source: the data root; any other than a local one has no links.
        csv_name: the CSV's path below it.
        paths: the images' paths relative to the CSV's folder, in its order.

    Raises:
        InputError: names the first such row.
    """
    if not isinstance(source.filesystem, pafs.LocalFileSystem):
        return
    root = os.path.realpath(source.base)
    folder = str(Path(source.base) / Path(csv_name).parent)

    def target_is_inside(name: str) -> bool:
        """Whether a file or folder lies in the root when all links are followed."""
        return f"{os.path.realpath(name)}{os.sep}".startswith(root + os.sep)

    known = {folder: target_is_inside(folder)}

    def is_inside(path: str) -> bool:
        """Whether an image lies in the root. Each folder is looked at once, and followed only if it is a link."""
        name = folder
        for part in path.split("/"):
            above, name = name, f"{name}/{part}"
            if name not in known:
                known[name] = known[above] and (not os.path.islink(name) or target_is_inside(name))
        return known[name]

    for row, path in enumerate(paths, start=2):
        if not is_inside(path):
            rule = f"Path '{shortened(path, 300)}' leads out of the data root through a link"
            raise InputError(f"{csv_name} row {row}: {rule}: copy the file into it")


def _refuse_other_sizes(source: Source, csv_name: str, masks_name: str, table: pd.DataFrame, masks: Masks) -> None:
    """Refuse masks of another size than their image, by the headers of images.

    An image that is missing or damaged passes; the step `images` rejects it.

    Args:
        source: the data root.
        csv_name: the CSV's path below it.
        masks_name: the mask file's path below it, for the message.
        table: the split's rows, each with masks.
        masks: the masks of the file.

    Raises:
        InputError: names the first such image, and both sizes.
    """
    for cxr_id, path in zip(table["cxr_id"], table["path"], strict=True):
        rle = next(iter(masks[cxr_id].values()))
        try:
            size = _size_in_header(source, f"{PurePosixPath(csv_name).parent}/{path}")
        except FileNotFoundError:
            continue
        if size is not None and size != (rle.height, rle.width):
            rule = f"its masks are {rle.height} x {rle.width} pixels, the image {size[0]} x {size[1]}"
            raise InputError(f"{masks_name}: '{shortened(cxr_id, 300)}': {rule}: correct the file")


def _size_in_header(source: Source, where: str) -> tuple[int, int] | None:
    """Read an image's size from its first bytes, or from the whole file where these do not hold it.

    Args:
        source: the data root.
        where: the image's path below it.

    Returns:
        (height, width) in pixels; None if the header is unreadable or the image too large.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is a DICOM file and pydicom is not installed.
    """
    with storage("read", f"{source.base}/{where}"), source.open(where) as stream:
        head = stream.read(_HEADER_BYTES)
        if is_dicom(head):
            require_pydicom(where)
        size = xray_size(head)
        if size is None and len(head) == _HEADER_BYTES:
            size = xray_size(head + stream.read())
    return size


def _annotated(table: pd.DataFrame, masks: Masks, csv_name: str, masks_name: str) -> pd.Series:
    """Find the rows that have masks.

    Args:
        table: all rows of the CSV.
        masks: the masks of the file.
        csv_name: the CSV's name, for the message.
        masks_name: the mask file's name, for the message.

    Returns:
        bool, one value per row.

    Raises:
        InputError: the mask file has an image that is missing in the CSV.
    """
    unknown = sorted(set(masks) - set(table["cxr_id"]))
    if unknown:
        rule = f"{len(unknown)} ids are not in {csv_name}, first '{shortened(unknown[0], 300)}'"
        raise InputError(f"{masks_name}: {rule}: correct the file")
    return table["cxr_id"].isin(masks.keys())


def _expert_splits(table: pd.DataFrame, masks: Masks, settings: Settings) -> npt.NDArray[np.object_]:
    """Assign annotated images to test, validation and training, whole patients at a time.

    The test images, if the test split has no files of its own, are split off first, stratified by the CSV's labels, so
    that no test mask influences how the others are split. The others are stratified by their masks.

    Args:
        table: the annotated rows.
        masks: the masks of the file.
        settings: the settings of the split's manifest step.

    Returns:
        test | validation | expert_train of each row, object [N].

    Raises:
        InputError: there are fewer images than the config asks for.
    """
    patients, seed = list(table["patient_id"]), settings.split_seed
    validation, test = float(settings.num_validation), float(settings.num_test or 0)
    if len(table) - validation - test < 1:
        asked = f"{validation:g} for validation and {test:g} for test"
        raise InputError(f"{len(table)} annotated images cannot give {asked}: ask for fewer")
    splits = np.full(len(table), "test", dtype=object)
    labels = (table[list(settings.pathologies)] == 1).to_numpy(dtype=bool)
    is_rest = np.ones(len(table), dtype=bool)
    if test:
        is_rest = split_by_patient(patients, labels, {"test": test, "rest": len(table) - test}, seed) == "rest"
    rest = table[is_rest]
    positives = np.array(
        [[not is_empty(masks[cxr_id][name]) for name in settings.pathologies] for cxr_id in rest["cxr_id"]], dtype=bool
    )
    sizes = {"validation": validation, "expert_train": len(rest) - validation}
    splits[is_rest] = split_by_patient(list(rest["patient_id"]), positives, sizes, seed)
    return splits


def _to_arrow(table: pd.DataFrame, masks: Masks, pathologies: Sequence[str]) -> pa.Table:
    """The rows of a split with their masks, with the columns of manifest_schema."""
    labels = table[list(pathologies)].to_numpy(dtype=np.float64)
    row_masks = [masks.get(cxr_id) for cxr_id in table["cxr_id"]]
    sizes = [next(iter(row.values())) if row else None for row in row_masks]
    columns = {name: list(table[name]) for name in ("cxr_id", "patient_id", "path", "view")}
    columns |= {
        "height": [size.height if size else None for size in sizes],
        "width": [size.width if size else None for size in sizes],
        "labels": [[None if np.isnan(label) else int(label) for label in row] for row in labels],
        "rle_original": [[row[name].counts for name in pathologies] if row else None for row in row_masks],
    }
    return pa.table(columns, schema=manifest_schema(pathologies))


def _summary(table: pd.DataFrame, masks: Masks, pathologies: Sequence[str]) -> dict[str, object]:
    """The metrics of a manifest: numbers of patients, and of each pathology's positive labels and non-empty masks."""
    labels = {name: int((table[name] == 1).sum()) for name in pathologies}
    annotated = {}
    if masks:
        for name in pathologies:
            annotated[name] = sum(not is_empty(masks[cxr_id][name]) for cxr_id in table["cxr_id"])
    return {"patients": int(table["patient_id"].nunique()), "positive_labels": labels, "positive_masks": annotated}
