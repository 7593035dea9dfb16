"""Use a trained network on one's own X-rays: what jobs/predict.py does."""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chexseg_ray.artifacts import Store
from chexseg_ray.cluster import RaySession, nodes, on_cluster
from chexseg_ray.errors import InputError
from chexseg_ray.models import describe
from chexseg_ray.progress import say
from chexseg_ray.stages.execution import ActorResources
from chexseg_ray.stages.exported import CARD, ExportedModel
from chexseg_ray.sweep import cpus_here
from chexseg_ray.xrays import XRays

_AREAS = ("cxr_id", "file", "height", "width", "pathology", "probability", "threshold", "pixels", "share")


def open_output(out: str) -> Store:
    """The folder or URI that predictions go to.

    Raises:
        InputError: it is a file.
    """
    if "://" not in out and Path(out).expanduser().is_file():
        raise InputError(f"--out={out}: is a file: name a folder")
    return Store.open(out)


def run_predict(model: ExportedModel, x_rays: XRays, out: str) -> int:
    """Predict X-rays and write predictions.json, areas.csv, overlays/, rejects.csv and the model's card into a folder or URI.

    Many files are predicted in groups, each kept in parts/ until all are done: the same command goes on where it stopped.

    Returns:
        Exit code: 0 done, 3 some files are no usable X-rays.

    Raises:
        InputError: none of them is.
    """
    from chexseg_ray.stages.files import MANY, predict_files

    store, number = open_output(out), len(x_rays.files)
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
    store.delete("parts")
    if rejects == number:
        raise InputError(f"{number} of {number} files are no X-rays that can be read (PNG, JPEG or DICOM; {store.shown('rejects.csv')}): name others")
    say(f"{done} of {number} X-rays predicted: {store.shown('predictions.json')}, areas.csv, overlays/")
    return 3 if rejects else 0


def _write(store: Store, groups: Iterator[Mapping[str, Any]]) -> tuple[int, int]:
    """Put the groups' results together; how many X-rays were predicted, and how many rejected."""
    entries, areas, rejects = io.StringIO(), io.StringIO(), io.StringIO()
    area_rows = csv.DictWriter(areas, _AREAS, lineterminator="\n")
    reject_rows = csv.DictWriter(rejects, ("cxr_id", "file", "reason"), lineterminator="\n")
    area_rows.writeheader()
    reject_rows.writeheader()
    done = rejected = 0
    for group in groups:
        for cxr_id, entry in group["entries"].items():
            entries.write(f"{',' if done else '{'}{json.dumps(cxr_id)}:{json.dumps(entry, separators=(',', ':'))}")
            done += 1
        area_rows.writerows(group["areas"])
        reject_rows.writerows(group["rejects"])
        for row in group["rejects"]:
            say(f"rejected: {row['file']}: {row['reason']}")
        rejected += len(group["rejects"])
        if done <= 5:
            _summarise(group["areas"])
    entries.write("}" if done else "{}")
    for name, stream in (("rejects.csv", rejects), ("areas.csv", areas), ("predictions.json", entries)):
        store.put(name, stream.getvalue().encode())
    return done, rejected


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


def _summarise(areas: Sequence[Mapping[str, Any]]) -> None:
    """What was found in a few X-rays."""
    for cxr_id in dict.fromkeys(row["cxr_id"] for row in areas):
        own = [row for row in areas if row["cxr_id"] == cxr_id and row["pixels"]]
        found = [f"{row['pathology']} {row['share']:.1%} (p {row['probability']:.2f})" for row in own]
        say(f"  {cxr_id}: {', '.join(found) or 'no mask above its threshold'}")
