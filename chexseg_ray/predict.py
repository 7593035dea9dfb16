"""Use a trained network on one's own X-rays: what jobs/predict.py does."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

import pyarrow.fs as pafs

from chexseg_ray.artifacts import Store, open_filesystem, storage
from chexseg_ray.cluster import RaySession, nodes, on_cluster
from chexseg_ray.data.chexpert import read_paths
from chexseg_ray.data.masks import exchange_json
from chexseg_ray.errors import InputError
from chexseg_ray.models import describe
from chexseg_ray.progress import say
from chexseg_ray.stages.execution import ActorResources
from chexseg_ray.stages.exported import CARD, ExportedModel
from chexseg_ray.sweep import cpus_here

_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
_CHEXPERT = re.compile(r"(patient[^/]*)/(study[^/]*)/(view[^/]*)\.\w+$")
_AREAS = ("cxr_id", "file", "height", "width", "pathology", "probability", "threshold", "pixels", "share")


def list_images(words: Sequence[str]) -> list[tuple[str, str]]:
    """(cxr_id, path) of every X-ray that the words name: files, folders with all that lies below them, CSV files with a column Path.

    Raises:
        InputError: a word names nothing, or two files have one id.
    """
    found: list[tuple[str, str]] = []
    for word in words:
        filesystem, where = open_filesystem(word, "IMAGE")
        with storage("read", word):
            info = filesystem.get_file_info(where)
        scheme = word.partition("://")[0] + "://" if "://" in word and not isinstance(filesystem, pafs.LocalFileSystem) else ""
        if info.type == pafs.FileType.NotFound:
            raise InputError(f"{word}: is no file and no folder: name X-rays, a folder of them or a CSV file")
        if info.type == pafs.FileType.Directory:
            own = _below(filesystem, where)
            if not own:
                raise InputError(f"{word}: has no file that ends in {', '.join(_SUFFIXES)}: name another folder")
            found += [(image_id(path.removeprefix(f"{where}/")), f"{scheme}{path}") for path in own]
        elif word.lower().endswith(".csv"):
            with storage("read", word), filesystem.open_input_file(where) as stream:
                paths = read_paths(stream.read(), word)
            folder = str(PurePosixPath(where).parent)
            found += [(image_id(path), f"{scheme}{folder}/{path}") for path in paths]
        else:
            found.append((image_id(PurePosixPath(where).name if not _CHEXPERT.search(where) else where), f"{scheme}{where}"))
    _refuse_repeated(found)
    return found


def _below(filesystem: pafs.FileSystem, where: str) -> list[str]:
    infos = filesystem.get_file_info(pafs.FileSelector(where, recursive=True))
    return sorted(info.path for info in infos if info.type == pafs.FileType.File and info.path.lower().endswith(_SUFFIXES))


def image_id(path: str) -> str:
    """CheXpert's id of a path in its layout; else the path without its ending, with _ for what is no letter, digit, point or dash."""
    match = _CHEXPERT.search(path)
    text = "_".join(match.groups()) if match else re.sub(r"\.\w+$", "", path)
    return re.sub(r"[^\w.-]", "_", text)


def _refuse_repeated(found: Iterable[tuple[str, str]]) -> None:
    seen: dict[str, str] = {}
    for cxr_id, path in found:
        if cxr_id in seen:
            raise InputError(f"{seen[cxr_id]} and {path}: both have the id {cxr_id!r}: rename one, or predict them apart")
        seen[cxr_id] = path


def run_predict(model: ExportedModel, words: Sequence[str], out: str) -> int:
    """Predict X-rays and write predictions.json, areas.csv, overlays/, rejects.csv and the model's card into a folder or URI.

    Returns:
        Exit code: 0 done, 3 some files are no usable X-rays.

    Raises:
        InputError: none of them is.
    """
    from chexseg_ray.stages.files import MANY, predict_files

    files, store = list_images(words), Store.open(out)
    for line in describe(model.card):
        say(line)
    session = RaySession(dashboard=False, num_cpus=cpus_here())
    try:
        resources = _resources(session, out) if len(files) >= MANY else ActorResources(1, 0, 1, 1)
        result = predict_files(model, files, store, resources, session.start)
    finally:
        session.stop()
    rejects = result["rejects"]
    for row in rejects:
        say(f"rejected: {row['file']}: {row['reason']}")
    if len(rejects) == len(files):
        raise InputError(f"{len(files)} of {len(files)} files are no X-rays that can be read (PNG, JPEG or DICOM): name others")
    store.put("predictions.json", exchange_json(result["entries"]).encode())
    store.put("areas.csv", _csv(_AREAS, result["areas"]))
    store.put("rejects.csv", _csv(("cxr_id", "file", "reason"), rejects))
    store.put(CARD, (json.dumps(model.card, indent=1) + "\n").encode())
    for line in _summary(result["areas"], len(result["entries"])):
        say(line)
    say(f"{len(result['entries'])} of {len(files)} X-rays predicted: {store.shown('predictions.json')}, areas.csv, overlays/")
    return 3 if rejects else 0


def _resources(session: RaySession, out: str) -> ActorResources:
    """Of actors that predict many files: one for each GPU that there is, or for each CPU.

    Raises:
        InputError: the nodes of a cluster would each write into a folder of their own.
    """
    if not on_cluster():
        return ActorResources(num_cpus=1, num_gpus=0, min_actors=1, max_actors=cpus_here())
    session.start()
    have = nodes()
    if len(have) > 1 and "://" not in out:
        raise InputError(f"--out={out}: {len(have)} nodes would each write to a folder of their own: name a URI such as s3://bucket/predictions")
    gpus = int(sum(node.get("GPU", 0.0) for node in have))
    most = gpus or int(sum(node.get("CPU", 0.0) for node in have))
    return ActorResources(num_cpus=1, num_gpus=1 if gpus else 0, min_actors=1, max_actors=max(1, most))


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def _summary(areas: Sequence[Mapping[str, object]], images: int) -> list[str]:
    """For a few images, what was found in each."""
    if images > 5:
        return []
    lines = []
    for cxr_id in dict.fromkeys(str(row["cxr_id"]) for row in areas):
        own = [row for row in areas if row["cxr_id"] == cxr_id]
        found = [f"{row['pathology']} {float(str(row['share'])):.1%} (p {float(str(row['probability'])):.2f})" for row in own if row["pixels"]]
        lines.append(f"  {cxr_id}: {', '.join(found) or 'no mask above its threshold'}")
    return lines
