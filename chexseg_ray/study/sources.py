"""The files that a study reads: CSV and JSON files below data.root, files of encoder weights, and their hashes."""

import hashlib
from collections.abc import Iterator
from typing import Any

import pyarrow.fs as pafs

from chexseg_ray.config.methods import METHODS
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.config.upstream import NAMED_INITS
from chexseg_ray.errors import InputError
from chexseg_ray.store.filesystem import Source, open_filesystem, refuse_credentials, storage
from chexseg_ray.study.graph import Study, study_graph
from chexseg_ray.study.points import sweep_points

SOURCE_FIELDS = ("weak_csv", "expert_csv", "expert_masks", "test_csv", "test_masks", "benchmark_masks")


def _refuse_credentials_in(config: StudyConfig) -> None:
    """Refuse credentials in any URI of a config, before it is printed or written anywhere.

    Args:
        config: the study's config.

    Raises:
        InputError: a URI has a name, password or key in it; names the field.
    """
    named = config.model_dump(mode="json", exclude={"data": {"licence"}, "report": {"title"}})  # not where data lie
    for field, text in _texts(named, ""):
        refuse_credentials(text, field)


def _texts(value: Any, field: str) -> Iterator[tuple[str, str]]:
    """The texts in a JSON value, keys of mappings among them, each with the field that it lies in."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if "://" in name:
                yield field, name
            yield from _texts(inner, field if "://" in name else f"{field}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, field)


def open_source(config: StudyConfig) -> Source | None:
    """Open the data root of a study.

    Args:
        config: the study's config.

    Returns:
        The root; None for phantoms.

    Raises:
        InputError: the root is not a folder.
        TransientError: the storage refuses or does not answer.
    """
    if config.data.root is None:
        return None
    filesystem, base = open_filesystem(config.data.root, "data.root")
    with storage("read", config.data.root):
        is_folder = filesystem.get_file_info(base).type == pafs.FileType.Directory
    if not is_folder:
        raise InputError(
            f"data.root={config.data.root}: is not a folder: name the folder that the CSV and mask files lie in"
        )
    return Source(filesystem, base)


def source_files(config: StudyConfig) -> dict[str, str | None]:
    """Return the paths of the CSV and JSON sources below the data root, by field of `data`; None where unset.

    Args:
        config: the study's config.
    """
    return {field: getattr(config.data, field) for field in SOURCE_FIELDS}


def source_hashes(config: StudyConfig, source: Source | None) -> dict[str, str]:
    """Return the sha256 of each CSV and JSON source by field of `data`; empty for phantoms.

    Args:
        config: the study's config.
        source: the opened data root; None for phantoms.

    Raises:
        InputError: a file is not there; names the field.
        TransientError: the storage refuses or does not answer.
    """
    hashes: dict[str, str] = {}
    if source is None:
        return hashes
    for field, name in source_files(config).items():
        if name is None:
            continue
        try:
            hashes[field] = hashlib.sha256(source.read(name)).hexdigest()
        except FileNotFoundError:
            rule = f"is not a file below data.root={config.data.root}"
            raise InputError(f"data.{field}={name}: {rule}: correct the name") from None
    return hashes


def encoder_files(config: StudyConfig) -> dict[str, str]:
    """Return the files of encoder weights that the study reads.

    Args:
        config: the study's config.

    Returns:
        {path or URI: the field that names it}.
    """
    points = sweep_points(config)
    inits = {("sweep.init", point.init, point.encoder) for point in points}
    encoders = {point.encoder for point in points}
    for init, section in (("chexpert", "encoder_classifier"), ("moco", "moco")):
        if any(point.init == init for point in points):
            inits |= {(f"{section}.init", getattr(config, section).init, encoder) for encoder in encoders}
    if any(point.p < 1 for point in points):
        inits.add(("classifier.init", config.classifier.init, config.classifier.architecture))
    for method in {point.method for point in points if point.method}:
        for path, architecture in METHODS[method].encoders.items():
            section, name = path.split(".")
            inits.add((path, getattr(getattr(config, section), name), architecture))
    files = {}
    for field, init, architecture in sorted(inits):
        if init == "imagenet" and architecture in config.pretraining.imagenet_files:
            files[config.pretraining.imagenet_files[architecture]] = f"pretraining.imagenet_files.{architecture}"
        elif init not in NAMED_INITS:
            files[init] = field
    return files


def hash_encoder_files(config: StudyConfig) -> dict[str, str]:
    """Return the sha256 of each of encoder_files(config), by path.

    Args:
        config: the study's config.

    Raises:
        InputError: a file cannot be read; names the field.
        TransientError: the storage refuses or does not answer.
    """
    hashes = {}
    for path, field in encoder_files(config).items():
        filesystem, where = open_filesystem(path, field)
        try:
            with storage("read", path), filesystem.open_input_file(where) as stream:
                hashes[path] = hashlib.sha256(stream.read()).hexdigest()
        except (FileNotFoundError, IsADirectoryError):
            names = "random or imagenet" if field != "sweep.init" else "random, imagenet, moco or chexpert"
            rule = "is not a file that can be read"
            raise InputError(f"{field}={path}: {rule}: name {names}, or a file of encoder weights") from None
    return hashes


def load_study(config: StudyConfig) -> tuple[Study, Source | None]:
    """Read and hash the sources of a study, and make its graph.

    Args:
        config: the study's config.

    Returns:
        The graph, and the data root (None for phantoms).

    Raises:
        InputError: a source or a file of weights cannot be read, or a URI of the config has credentials in it.
        TransientError: the storage refuses or does not answer.
    """
    _refuse_credentials_in(config)
    source = open_source(config)
    return study_graph(config, source_hashes(config, source), hash_encoder_files(config)), source


def load_plan(config: StudyConfig) -> tuple[Study, Source | None, list[str]]:
    """Return the graph of a config for its plan; data and files of weights may be missing on this machine.

    A missing file has unknown content, so nothing that is made from it counts as built.

    Returns:
        The graph; the data root, or None if it or a source is missing; and one sentence for each thing that is missing.

    Raises:
        InputError: a URI of the config has credentials in it.
    """
    _refuse_credentials_in(config)
    absent, source = [], None
    try:
        opened = open_source(config)
        sources = source_hashes(config, opened)
        source = opened
    except InputError as error:
        absent.append(str(error))
        sources = {field: f"absent {getattr(config.data, field)}" for field in SOURCE_FIELDS if config.data.root}
    try:
        files = hash_encoder_files(config)
    except InputError as error:
        absent.append(str(error))
        files = {path: f"absent {path}" for path in encoder_files(config)}
    return study_graph(config, sources, files), source, absent
