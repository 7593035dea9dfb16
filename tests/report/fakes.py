"""A store that holds a study's records with made-up counts: what a report is made from, without training anything."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from chexseg_ray.config.axes import SweepPoint
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.stages.counts import COUNTS
from chexseg_ray.store.step import Record, Step
from chexseg_ray.store.store import Store
from chexseg_ray.study.graph import Study, study_graph
from chexseg_ray.study.sources import encoder_files

PATIENTS, IMAGES = 40, 60
SOURCES = dict.fromkeys(("weak_csv", "expert_csv", "expert_masks", "test_csv", "test_masks", "benchmark_masks"), "0")


def graph(config: StudyConfig) -> Study:
    return study_graph(config, SOURCES if config.data.root else {}, dict.fromkeys(encoder_files(config), "0"))


def commit(
    store: Store,
    step: Step,
    files: dict[str, pa.Table | bytes],
    metrics: dict[str, Any],
    rejects: int = 0,
    rows: int = 1,
) -> None:
    attempt = store.new_attempt(step)
    entries = [attempt.write(n, f) if isinstance(f, bytes) else attempt.write_table(n, f) for n, f in files.items()]
    inputs = {role: child.fingerprint for role, child in step.inputs.items()}
    run = {"seconds": 1.0, "versions": {}}
    made_from = step.name, step.version, step.fingerprint, dict(step.config), inputs
    store.commit(Record(*made_from, attempt.name, tuple(entries), rows, rejects, metrics, run))


def counts_table(
    pathologies: list[str],
    quality: float,
    seed: int,
    absent: str = "",
    blank: str = "",
    positive: tuple[str, int] = ("", 0),
) -> pa.Table:
    """Make up counts whose truth is the same for every seed.

    A prediction finds a share `quality` of the truth, and nothing of the pathology `blank`. No image shows the
    pathology `absent`. `positive` names a pathology and the number of patients that show it.
    """
    truth_rng, rng = np.random.default_rng(7), np.random.default_rng(seed)
    rows = []
    for image in range(IMAGES):
        patient = image % PATIENTS
        for name in pathologies:
            truth = int(truth_rng.integers(20, 400) * (truth_rng.random() < 0.6)) * (name != absent)
            if name == positive[0]:
                truth = 100 * (patient < positive[1])
            for resolution, scale in (("model", 1), ("original", 9)):
                found = int(truth * np.clip(quality + rng.normal(scale=0.1), 0, 1)) * (name != blank)
                predicted = (found + int(rng.integers(0, 40))) * (name != blank)
                identity = {
                    "cxr_id": f"img{image:03d}",
                    "patient_id": f"p{patient}",
                    "pathology": name,
                    "resolution": resolution,
                }
                rows.append(
                    identity | {"intersection": scale * found, "predicted": scale * predicted, "truth": scale * truth}
                )
    return pa.Table.from_pylist(rows, schema=COUNTS)


def quality_of(point: SweepPoint) -> float:
    return 0.2 + 0.5 * min(point.p, 0.9) - 0.1 * (point.p == 1) - 0.05 * (point.method == "irnet")


def fill(
    store: Path,
    config: StudyConfig,
    skip: int = 0,
    test_seed: int = 0,
    absent: str = "",
    same: bool = False,
    ids: int = 0,
    blank: tuple[str, int] = ("", -1),
    positive: tuple[str, int] = ("", 0),
    zero: tuple[str, int] = ("", -1),
) -> Study:
    """Commit the segmentation and evaluation of all points but the first `skip`, and the reader's benchmark.

    `test_seed` seeds the predictions on the test set, `same` gives every point the same counts, and `ids` weak images
    have pseudo masks. No image shows the pathology `absent`. `blank` names a pathology and the trial that predicts
    nothing of it. `positive` names a pathology and the number of patients that show it. `zero` names a pathology and
    the trial whose threshold of it is 0.
    """
    study, opened, names = graph(config), Store.open(str(store)), list(config.data.pathologies)
    thresholds = {name: {"threshold": 0.5, "iou": None, "source": "default"} for name in names}
    for place, (point, evaluation) in list(enumerate(study.points))[skip:]:
        score = quality_of(point) + 0.01 * point.trial
        at_zero = {zero[0]: thresholds[zero[0]] | {"threshold": 0.0}} if point.trial == zero[1] else {}
        metrics = {
            "thresholds": thresholds | at_zero,
            "validation_miou": score,
            "history": [],
            "best_update": 1,
            "weak_ids": 8,
            "expert_ids": 10,
        }
        commit(opened, evaluation.inputs["segmentation"], {}, metrics)
        seed, nothing = 1000 * test_seed + (0 if same else place), blank[0] if point.trial == blank[1] else ""
        counts = counts_table(names, quality_of(point), seed, absent, nothing, positive)
        commit(opened, evaluation, {"counts.parquet": counts}, {})
    for step in study.steps():
        if ids and step.name == "pseudo_masks":
            masks = pa.table({"cxr_id": [f"w{i:02d}" for i in range(ids)]})
            commit(opened, step, {"masks/part-00000.parquet": masks}, {})
    if study.benchmark:
        counts = counts_table(names, 0.9, 999, absent, "", positive)
        commit(opened, study.benchmark, {"counts.parquet": counts}, {"images": IMAGES, "absent": 0, "not_in_test": 0})
    return study


def load(path: Path) -> Any:
    return json.loads(path.read_text())
