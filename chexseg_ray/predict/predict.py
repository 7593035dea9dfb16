"""Use a trained network on X-rays of your own: what jobs/predict.py does."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import IO, Any

from chexseg_ray.cluster.machine import cpus_here
from chexseg_ray.cluster.nodes import nodes
from chexseg_ray.cluster.session import RaySession, on_cluster
from chexseg_ray.command import command_line
from chexseg_ray.config.resources import ActorCompute
from chexseg_ray.data.dicom import FOR_PROCESSING, XRAY_MODALITIES
from chexseg_ray.data.xrays import count_notes, note_lines
from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.predict.card import CARD, ExportedModel
from chexseg_ray.predict.listing import MADE, XRays
from chexseg_ray.predict.model import describe
from chexseg_ray.predict.output import open_output
from chexseg_ray.progress import csv_cell, one_line, say
from chexseg_ray.store.filesystem import storage
from chexseg_ray.store.own_files import own_files
from chexseg_ray.store.store import Store

_ENTRIES, _AREAS, _REJECTS, _NOTES = "predictions.json", "areas.csv", "rejects.csv", "notes.csv"
_MARK = f"overlays/{MADE}"
_OUTPUT = (_ENTRIES, _AREAS, _REJECTS, _NOTES, "overlays", CARD)
_MARK_TEXT = (
    "Drawn by jobs/predict.py, which passes them over as X-rays, and deletes of the files listed here what a later run "
    "does not draw:"
)
_MAX_PRINTED = 10  # rejects that are printed one by one
_MAX_SUMMARISED = 5  # X-rays, up to which the masks that were found are printed
_COLUMNS = {
    _REJECTS: ("cxr_id", "file", "reason"),
    _NOTES: ("cxr_id", "file", "note"),
    _AREAS: ("cxr_id", "file", "height", "width", "pathology", "probability", "threshold", "pixels", "share"),
}
_OTHER_MODALITY = (
    f"modality: the DICOM header says another one than {', '.join(XRAY_MODALITIES)}, or {FOR_PROCESSING}: to predict "
    "such files too, add --allow-modality CODE"
)


def open_predictions(out: str) -> Store:
    """Open the folder or URI that predictions go to; creates nothing.

    Args:
        out: the folder or URI.

    Raises:
        InputError: it cannot be a folder, or it contains a file of another origin that would be overwritten.
    """
    return open_output(out, _OUTPUT, _MARK)


def run_predict(model: ExportedModel, x_rays: XRays, out: str, allowed: Sequence[str] = ()) -> int:
    """Predict X-rays and write predictions.json, areas.csv, overlays/, rejects.csv, notes.csv and the model's card.

    Many files are predicted in groups. Each group's result is kept in a file of its own until all are done, so that the
    same command continues where it stopped.

    Args:
        model: card and weights.
        x_rays: the files, from list_images.
        out: a folder or URI.
        allowed: modalities of DICOM files that are predicted too (data.dicom.decode_dicom).

    Returns:
        Exit code: 0 done, 3 some files are no usable X-rays.

    Raises:
        InputError: no file is a usable X-ray, or `out`, the model or the cluster cannot be used.
    """
    from chexseg_ray.predict.files import drop_parts

    store, number = open_predictions(out), len(x_rays.files)
    drawn = {f"{x_ray.cxr_id}.png" for x_ray in x_rays.files}
    with own_files(store, "overlays", MADE, drawn, _MARK_TEXT):
        num_done, num_rejected = _predict_and_write(model, x_rays, store, out, allowed)
        store.put(CARD, (json.dumps(model.card, indent=1) + "\n").encode())
        drop_parts(store)
    if num_rejected == number:
        rule = f"no X-rays that can be read (PNG, JPEG or DICOM; {store.shown(_REJECTS)})"
        raise InputError(f"{number} of {number} files are {rule}: name others")
    say(f"{num_done} of {number} X-rays predicted: {store.shown(_ENTRIES)}, {_AREAS}, overlays/")
    return 3 if num_rejected else 0


def _predict_and_write(
    model: ExportedModel, x_rays: XRays, store: Store, out: str, allowed: Sequence[str]
) -> tuple[int, int]:
    """Predict X-rays and write all but the model's card; arguments as in run_predict, returns as _write."""
    from chexseg_ray.predict.files import MANY, predict_files

    for line in describe(model.card):
        say(line)
    number = len(x_rays.files)
    session = RaySession(dashboard=False, num_cpus=cpus_here())
    try:
        try:
            resources = _resources(session, x_rays, store, out) if number >= MANY else _of_this_process()
            groups = predict_files(model, x_rays, store, resources, session.start, allowed)
        finally:
            session.stop()
        return _write(store, groups)
    except (TransientError, KeyboardInterrupt) as error:
        if number >= MANY:
            error.add_note(f"finished groups of X-rays are kept in {store.shown_root}")
            error.add_note(f"to go on: {command_line()}")
        raise


def _write(store: Store, groups: Iterator[Mapping[str, Any]]) -> tuple[int, int]:
    """Put the groups' results together and then print a summary.

    Files are put together on disk (60 kB per X-ray), so that memory does not grow with their number.

    Args:
        store: gets the files.
        groups: as predict_files yields them.

    Returns:
        How many X-rays were predicted, and how many rejected.
    """
    num_done = num_rejected = 0
    lines, summaries, notes = list[str](), list[str](), list[dict[str, str]]()
    is_other = False  # whether any was rejected for its modality
    folder = store.path("") if store.is_local else None
    with ExitStack() as stack:
        with storage("written", store.path("")):
            names = (_REJECTS, _NOTES, _AREAS, _ENTRIES)
            files = {name: stack.enter_context(TemporaryFile(dir=folder)) for name in names}
            writers = {name: _csv_writer(files[name], columns) for name, columns in _COLUMNS.items()}
        for group in groups:
            areas, rejects, about = group["areas"], group["rejects"], group.get("notes", [])
            with storage("written", store.path("")):
                for cxr_id, entry in group["entries"].items():
                    text = f"{',' if num_done else '{'}{json.dumps(cxr_id)}:{json.dumps(entry, separators=(',', ':'))}"
                    files[_ENTRIES].write(text.encode())
                    num_done += 1
                for name, rows in ((_AREAS, areas), (_REJECTS, rejects), (_NOTES, about)):
                    writers[name].writerows(map(_safe_row, rows))
            printed = rejects[: max(0, _MAX_PRINTED - num_rejected)]
            lines += [f"rejected: {row['file']}: {row['reason']}" for row in printed]
            is_other |= any(row["reason"] == "modality" for row in rejects)
            num_rejected += len(rejects)
            notes += about
            if num_done <= _MAX_SUMMARISED:
                summaries += _summary(areas)
        files[_ENTRIES].write(b"}" if num_done else b"{}")
        for name, stream in files.items():
            stream.seek(0)
            store.put_stream(name, stream)
    if num_done <= _MAX_SUMMARISED:
        lines += summaries
    for line in lines:
        say(one_line(line))
    if num_rejected > _MAX_PRINTED:
        say(f"rejected: {num_rejected - _MAX_PRINTED} more, in {store.shown(_REJECTS)}")
    if is_other:
        say(_OTHER_MODALITY)
    for line in note_lines(count_notes((row["file"], row["note"]) for row in notes)):
        say(f"note: {one_line(line)}; see {_NOTES}")
    return num_done, num_rejected


def _csv_writer(stream: IO[bytes], columns: Sequence[str]) -> "csv.DictWriter[str]":
    """A writer of UTF-8 rows, below the header that it writes at once."""
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=True)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    return writer


def _safe_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: csv_cell(value) for name, value in row.items()}


def _of_this_process() -> ActorCompute:
    """What a prediction in this process uses: torch's threads, and the GPU that it sees."""
    import torch

    return ActorCompute(num_cpus=torch.get_num_threads(), num_gpus=int(torch.cuda.is_available()))


def _resources(session: RaySession, x_rays: XRays, store: Store, out: str) -> ActorCompute:
    """What the actors that predict many files ask for: one per GPU, or where there is none one per CPU.

    Args:
        session: started here on a cluster, to count its CPUs and GPUs.
        x_rays: the files.
        store: gets the output.
        out: the store's folder or URI, as the user wrote it.

    Raises:
        InputError: an X-ray or the output lies in a folder of this machine, and the cluster has several nodes.
    """
    if not on_cluster():
        import torch

        return _of_actors(cpus_here(), torch.cuda.device_count())
    session.start()
    present = nodes()
    cpus, gpus = (sum(node.get(kind, 0.0) for node in present) for kind in ("CPU", "GPU"))
    if len(present) > 1 or not cpus:  # a head without CPUs will get more nodes
        local_out = out if store.is_local and "://" not in out else None
        for what, name in (("--out", local_out), ("IMAGE", x_rays.only_here)):
            if name is not None:
                rule = "is only on this machine, and the cluster has several nodes"
                remedy = f"name a URI (s3://...), or file://{os.path.abspath(name)} if every node has it"
                raise InputError(f"{what} {name}: {rule}: {remedy}")
    return _of_actors(cpus, gpus)


def _of_actors(cpus: float, gpus: float) -> ActorCompute:
    """Actors for so many CPUs and GPUs: one per GPU, or where there is none one per CPU."""
    return ActorCompute(
        num_cpus=0.5 if gpus else 1, num_gpus=1 if gpus else 0, min_actors=1, max_actors=max(1, int(gpus or cpus))
    )


def _summary(areas: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per X-ray with the masks that were found in it."""
    lines = []
    for cxr_id in dict.fromkeys(row["cxr_id"] for row in areas):
        found = []
        for row in areas:
            if row["cxr_id"] == cxr_id and row["pixels"]:
                found.append(f"{row['pathology']} {row['share']:.1%} (p {row['probability']:.2f})")
        lines.append(f"  {cxr_id}: {', '.join(found) or 'no mask above its threshold'}")
    return lines
