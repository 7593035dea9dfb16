"""jobs/sweep.py --verify: compare the source images of a study with what was decoded of them."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePosixPath

from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.errors import InputError
from chexseg_ray.progress import say, track
from chexseg_ray.store.filesystem import Source
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store
from chexseg_ray.study.graph import Study
from chexseg_ray.study.sources import source_files

_THREADS = 16  # files are read at once, since an object store takes 30 ms for one
_MOST_SHOWN = 20


def verify_sources(config: StudyConfig, study: Study, source: Source | None, store: Store) -> int:
    """Read every source image whose decoded form the store has, and print those that have changed since.

    Args:
        config: the study's config.
        study: its graph.
        source: the data root; None for phantoms, whose images are files of the store.
        store: contains what was decoded.

    Returns:
        Exit code 0.

    Raises:
        InputError: images have changed or are gone; the lines before name the first.
        TransientError: the storage refuses or does not answer.
    """
    records = store.find_all(study.steps())
    compared, changed, folders = 0, list[str](), list[str]()
    for step in study.upstream():
        if step.name != "images":
            continue
        split = step.config["split"]
        if step.address not in records:
            say(f"{split}: its images are not decoded yet")
            continue
        record = records[step.address]
        root = source
        if root is None:
            phantom = next(other for other in step.ancestors() if other.name == "phantom")
            root = store.source_of(records[phantom.address])
        number, faults = _compare(config, split, root, store, record, records[step.inputs["manifest"].address])
        compared += number
        changed += faults
        if faults:
            folders.append(store.shown(step.address))
    for line in changed[:_MOST_SHOWN]:
        say(f"changed: {line}")
    if len(changed) > _MOST_SHOWN:
        say(f"changed: {len(changed) - _MOST_SHOWN} more")
    say(f"{compared} images compared with what was decoded")
    if changed:
        remedy = f"put the old files back, or delete {' and '.join(folders)} and run again"
        raise InputError(f"{len(changed)} of {compared} images have changed since they were decoded: {remedy}")
    return 0


def _compare(
    config: StudyConfig, split: str, source: Source, store: Store, images: Record, manifest: Record
) -> tuple[int, list[str]]:
    """Compare the images of a split; returns their number, and a line for each that has changed or is gone."""
    from chexseg_ray.stages.manifest import split_files

    folder = PurePosixPath(split_files(split, source_files(config))[0]).parent
    rows = store.read_table(manifest, "manifest.parquet", ["cxr_id", "path"]).to_pylist()
    paths = {row["cxr_id"]: str(folder / row["path"]) for row in rows}
    decoded = store.read_tables(images, "images/", ["cxr_id", "sha256"]).to_pylist()
    progress = track(f"{split}: images compared", len(decoded))
    faults = []
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = pool.map(partial(_hash, source), (paths[row["cxr_id"]] for row in decoded))
        for number, (row, found) in enumerate(zip(decoded, hashes, strict=True), start=1):
            if found != row["sha256"]:
                what = "its bytes are not those that were decoded" if found else "is gone"
                faults.append(f"{source.base}/{paths[row['cxr_id']]}: {what}")
            progress(number, split)
    return len(decoded), faults


def _hash(source: Source, path: str) -> str:
    """The sha256 of a file's bytes; empty where there is no file."""
    try:
        return hashlib.sha256(source.read(path)).hexdigest()
    except FileNotFoundError:
        return ""
