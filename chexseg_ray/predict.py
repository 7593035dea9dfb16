"""Use a trained network on one's own X-rays: what jobs/predict.py does."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import IO, Any

from chexseg_ray.artifacts import Store, storage
from chexseg_ray.cluster import RaySession, cpus_here, nodes, on_cluster
from chexseg_ray.errors import InputError
from chexseg_ray.models import describe
from chexseg_ray.output import open_output
from chexseg_ray.progress import one_line, say
from chexseg_ray.stages.execution import ActorResources
from chexseg_ray.stages.exported import CARD, ExportedModel
from chexseg_ray.xrays import MADE, XRays

_ENTRIES, _REJECTED = "predictions.json", "rejects.csv"
_MARK = f"overlays/{MADE}"
_OURS = (_ENTRIES, "areas.csv", _REJECTED, "overlays", CARD)
_SAID = 10  # rejects that are said one by one
_REASONS = ("cxr_id", "file", "reason")
_AREAS = ("cxr_id", "file", "height", "width", "pathology", "probability", "threshold", "pixels", "share")


def open_predictions(out: str) -> Store:
    """The folder or URI that predictions go to; nothing is created yet.

    Raises:
        InputError: it cannot be one, or holds what would be overwritten and is none of ours.
    """
    return open_output(out, _OURS, _MARK)


def run_predict(model: ExportedModel, x_rays: XRays, out: str) -> int:
    """Predict X-rays and write predictions.json, areas.csv, overlays/, rejects.csv and the model's card into a folder or URI.

    Many files are predicted in groups, each kept in a part of its own until all are done: the same command goes on where it stopped.

    Returns:
        Exit code: 0 done, 3 some files are no usable X-rays.

    Raises:
        InputError: none of them is.
    """
    from chexseg_ray.stages.files import MANY, drop_parts, predict_files

    store, number = open_predictions(out), len(x_rays.files)
    store.put(_MARK, b"Drawn by jobs/predict.py, which passes them over as X-rays, and which deletes here what a later run does not draw.\n")
    for line in describe(model.card):
        say(line)
    session = RaySession(dashboard=False, num_cpus=cpus_here())
    try:
        resources = _resources(session, x_rays, store, out) if number >= MANY else ActorResources(1, 0, 1, 1)
        groups = predict_files(model, x_rays, store, resources, session.start)
    finally:
        session.stop()
    done, rejects = _write(store, groups)
    store.put(CARD, (json.dumps(model.card, indent=1) + "\n").encode())
    drop_parts(store)
    for name in {*store.names("overlays")} - {f"{own.cxr_id}.png" for own in x_rays.files} - {MADE}:
        store.delete(f"overlays/{name}")  # of an earlier run, perhaps of another model
    if rejects == number:
        raise InputError(f"{number} of {number} files are no X-rays that can be read (PNG, JPEG or DICOM; {store.shown(_REJECTED)}): name others")
    say(f"{done} of {number} X-rays predicted: {store.shown(_ENTRIES)}, areas.csv, overlays/")
    return 3 if rejects else 0


def _write(store: Store, groups: Iterator[Mapping[str, Any]]) -> tuple[int, int]:
    """Put the groups' results together, and then say what they are; how many X-rays were predicted, and how many rejected.

    Files are put together on disk (60 kB an X-ray), so that memory does not grow with their number.
    """
    done = rejected = 0
    said: list[str] = []
    folder = store.path("") if store.is_local else None
    with ExitStack() as stack:
        with storage("written", store.path("")):
            files = {name: stack.enter_context(TemporaryFile(dir=folder)) for name in (_REJECTED, "areas.csv", _ENTRIES)}
            reject_rows, area_rows = _csv(files[_REJECTED], _REASONS), _csv(files["areas.csv"], _AREAS)
        for group in groups:
            with storage("written", store.path("")):
                for cxr_id, entry in group["entries"].items():
                    text = f"{',' if done else '{'}{json.dumps(cxr_id)}:{json.dumps(entry, separators=(',', ':'))}"
                    files[_ENTRIES].write(text.encode())
                    done += 1
                area_rows.writerows(map(_cells, group["areas"]))
                reject_rows.writerows(map(_cells, group["rejects"]))
            said += [f"rejected: {row['file']}: {row['reason']}" for row in group["rejects"][: max(0, _SAID - rejected)]]
            rejected += len(group["rejects"])
            if done <= 5:
                said += _summary(group["areas"])
        files[_ENTRIES].write(b"}" if done else b"{}")
        for name, stream in files.items():
            stream.seek(0)
            store.put_stream(name, stream)
    for line in said:
        say(one_line(line))
    if rejected > _SAID:
        say(f"rejected: {rejected - _SAID} more, in {store.shown(_REJECTED)}")
    return done, rejected


def _csv(stream: IO[bytes], columns: Sequence[str]) -> "csv.DictWriter[str]":
    writer = csv.DictWriter(io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True), columns, lineterminator="\n")
    writer.writeheader()
    return writer


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose texts are no formula to a spreadsheet, and UTF-8."""
    return {name: _cell(value) if isinstance(value, str) else value for name, value in row.items()}


def _cell(text: str) -> str:
    return ("'" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else "") + text.encode(errors="backslashreplace").decode()


def _resources(session: RaySession, x_rays: XRays, store: Store, out: str) -> ActorResources:
    """Of actors that predict many files: one for each GPU that there is, or for each CPU.

    Raises:
        InputError: nodes of a cluster lack a folder, or would each write into their own.
    """
    if not on_cluster():
        return ActorResources(num_cpus=1, num_gpus=0, min_actors=1, max_actors=cpus_here())
    session.start()
    have = nodes()
    cpus, gpus = (sum(node.get(kind, 0.0) for node in have) for kind in ("CPU", "GPU"))
    if len(have) > 1 or not cpus:  # a head without CPUs grows
        for what, name in (("--out", out if store.is_local and "://" not in out else None), ("IMAGE", x_rays.only_here)):
            if name is not None:
                shared = f"file://{os.path.abspath(name)} if every node has it"
                raise InputError(f"{what} {name}: of this machine alone, and the cluster has several nodes: name a URI (s3://...), or {shared}")
    return ActorResources(num_cpus=0.5 if gpus else 1, num_gpus=1 if gpus else 0, min_actors=1, max_actors=max(1, int(gpus or cpus)))


def _summary(areas: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was found in a few X-rays."""
    lines = []
    for cxr_id in dict.fromkeys(row["cxr_id"] for row in areas):
        own = [row for row in areas if row["cxr_id"] == cxr_id and row["pixels"]]
        found = [f"{row['pathology']} {row['share']:.1%} (p {row['probability']:.2f})" for row in own]
        lines.append(f"  {cxr_id}: {', '.join(found) or 'no mask above its threshold'}")
    return lines
