"""What a large study costs the driver, with the work itself left out.

    python benchmarks/scale.py [POINTS, a multiple of 200, default 10000] [IMAGES, at least 20000, default 1000000]

Measures two parts. With POINTS sweep points: the graph; the plan of an empty store; then, with a record for every
step (counts of 20 test images), the plan, the same sweep twice when everything is built, the first time with its
report, and the plan of a sweep with one trial more. With a weak CSV of IMAGES rows: the sources and the graph; the
manifest; its groups of images, first only made, then sent through Ray Data without decoding (this starts a local Ray
of 2 CPUs); and a trial's subset of the weak images. Prints the machine, then the seconds of each and the driver's
memory after it, and at the end the driver's peak memory as JSON.
"""

import io
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
from machine import describe

from chexseg_ray.cluster.session import RaySession
from chexseg_ray.config.parse import load_config
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.engine.execution import make_execution, no_ray_to_start
from chexseg_ray.engine.grouped import run_tasks
from chexseg_ray.plan.lines import plan_lines
from chexseg_ray.plan.plan import known_sizes, plan
from chexseg_ray.segmentation.mixing import weak_subset
from chexseg_ray.stages.counts import COUNTS
from chexseg_ray.stages.images import row_groups
from chexseg_ray.store.step import FileEntry, Record, Step
from chexseg_ray.store.store import Store
from chexseg_ray.study.graph import Study
from chexseg_ray.study.sources import load_study
from chexseg_ray.sweep.build import build
from chexseg_ray.sweep.run import run_study

TINY = Path(__file__).resolve().parents[1] / "tests" / "tiny.yaml"


def memory() -> float:
    """Return this process's resident memory, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print the seconds of a block, and the memory after it."""
    start = time.perf_counter()
    yield
    print(f"{what:<70} {time.perf_counter() - start:7.1f} s   {memory():6.0f} MB", flush=True)


def config_of(points: int, root: str) -> StudyConfig:
    """Load tests/tiny.yaml with 200 settings (20 p x 2 inits x 5 numbers of weak images) of points / 200 trials each.

    Args:
        points: a multiple of 200.
        root: the store's folder.
    """
    fractions = [round(0.04 * i, 2) for i in range(1, 21)]
    sweep = [f"sweep.p={fractions}", "sweep.weak_n=[4, 8, 10, 12, 16]", "sweep.init=[random, chexpert]"]
    sweep.append(f"sweep.trials={points // 200}")
    return load_config(TINY, [f"store.root={root}", *sweep])


def fabricate(step: Step, store: Store, counts: pa.Table) -> None:
    """Commit a record as if the step were built.

    Args:
        step: the step.
        store: where the record goes.
        counts: the table that an evaluation or a benchmark makes.
    """
    attempt = store.new_attempt(step)
    files: tuple[FileEntry, ...] = ()
    if step.name in ("evaluation", "benchmark"):
        files = (attempt.write_table("counts.parquet", counts),)
    metrics = {
        "validation_auroc": 0.5,
        "selected": "best",
        "positive_masks": dict.fromkeys(step.config.get("pathologies", []), 1),
        "positive_labels": {},
        "patients": 1,
        "thresholds": {},
        "images": 20,
        "absent": 0,
        "validation_miou": None,  # so that no trial is chosen, and nothing is predicted
        "history": [],
        "best_update": 1,
    }
    record = Record(
        name=step.name,
        version=step.version,
        fingerprint=step.fingerprint,
        config=dict(step.config),
        inputs={role: child.fingerprint for role, child in step.inputs.items()},
        attempt=attempt.name,
        files=files,
        rows=20,
        rejects=0,
        metrics=metrics,
        run={"seconds": 1.0, "versions": {}},
    )
    store.commit(record)


def show(study: Study, store: Store, config: StudyConfig) -> None:
    """Print the plan."""
    sizes = known_sizes(study, store, config)
    for line in plan_lines(plan(study, store, config, sizes), study, store, config, sizes):
        print(line)


def random_counts(pathologies: Sequence[str]) -> pa.Table:
    """Draw the counts of 20 images, at both resolutions."""
    rng = np.random.default_rng(0)
    rows = []
    for image, resolution, pathology in product(range(20), ("model", "original"), pathologies):
        row = {"cxr_id": f"x{image:03d}", "patient_id": f"x{image:03d}"}
        row |= {"pathology": pathology, "resolution": resolution}
        intersection, predicted, truth = sorted(rng.integers(0, 900, 3).tolist())
        rows.append({**row, "intersection": intersection, "predicted": predicted, "truth": truth})
    return pa.Table.from_pylist(rows, schema=COUNTS)


def points_part(points: int, root: str) -> None:
    """Measure what depends on the number of sweep points.

    Args:
        points: a multiple of 200.
        root: an empty folder.
    """
    config = config_of(points, root)
    store = Store.open(root)
    with timed(f"graph of {points} points"):
        study, _ = load_study(config)
        steps = study.steps()
    with timed(f"plan of its {len(steps)} steps, nothing built"), redirect_stdout(io.StringIO()):
        show(study, store, config)
    table = random_counts(config.data.pathologies)
    with timed("(a record for every step)"):
        for step in steps:
            fabricate(step, store, table)
    with timed("plan, everything built"), redirect_stdout(io.StringIO()):
        show(study, store, config)
    with timed("the same sweep again: no-op with its report"), redirect_stdout(io.StringIO()):
        assert run_study(config) == 0
    with timed("and again"), redirect_stdout(io.StringIO()):
        assert run_study(config) == 0
    more = config_of(points + 200, root)
    with timed("plan of one trial more"), redirect_stdout(io.StringIO()):
        larger = load_study(more)[0]
        show(larger, store, more)


def images_part(images: int, root: str) -> None:
    """Measure what depends on the number of weak images.

    Args:
        images: rows of the weak CSV, at least 20,000.
        root: an empty folder.
    """
    data = Path(root) / "data"
    (data / "CheXpert-v1.0").mkdir(parents=True)
    without_experts = ["data.expert_csv=null", "data.expert_masks=null", "data.benchmark_masks=null", "sweep.p=[0]"]
    without_experts += ["pseudo_masks.thresholds=otsu", "segmentation.thresholds=fixed", "segmentation.checkpoint=last"]
    config = load_config(TINY, [f"store.root={root}/store", f"data.root={data}", *without_experts])
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA"]
    header += [name.replace("Airspace", "Lung") for name in config.data.pathologies]  # as CheXpert's CSV calls it
    with (data / "CheXpert-v1.0" / "train.csv").open("w") as stream:
        stream.write(",".join(header) + "\n")
        for i in range(images):
            path = f"CheXpert-v1.0/train/patient{i // 4:06d}/study{i % 4}/view1_frontal.jpg"
            labels = ",".join("1.0" if (i + k) % 7 == 0 else "" for k in range(10))
            stream.write(f"{path},Male,60,Frontal,AP,{labels}\n")
    (data / "CheXpert-v1.0" / "test_labels.csv").write_text("Path\n")
    (data / "CheXlocalize").mkdir()
    (data / "CheXlocalize" / "gt_segmentations_test.json").write_text("{}")
    store = Store.open(config.store.root)
    with timed(f"study of {images} images: sources hashed, graph"):
        study, source = load_study(config)
    manifests = [step for step in study.upstream() if step.name == "manifest"]
    weak = next(step for step in manifests if step.config["split"] == "weak")
    with timed("manifest: CSV checked, written"):
        record = build(weak, store, make_execution(config, source, no_ray_to_start))
    assert record.rows == images, record.rows
    with timed("its groups of 128, as the images stage hands them out"):
        columns = ["cxr_id", "path", "height", "width", "rle_original"]
        groups = sum(1 for _ in row_groups(store.read_table(record, "manifest.parquet", columns)))
    RaySession(dashboard=False, num_cpus=2).start()
    with timed(f"{groups} groups through Ray Data, nothing decoded"), redirect_stdout(io.StringIO()):
        run_tasks("images", ": groups", row_groups(store.read_table(record, "manifest.parquet", columns)), nothing, 1.0)
    ids = [f"patient{i:07d}" for i in range(images)]
    with timed("weak subset of 20,000 for the third trial"):
        weak_subset(ids, 0, 2, 20_000)


def nothing(group: int, rows: object) -> dict[str, object]:
    """Return what a task of the images stage returns, without its work."""
    return {"rows": 128, "files": [FileEntry("images/part-00000.parquet", 1, "0" * 64)], "rejects": []}


def main() -> None:
    """Measure both parts and print their lines."""
    arguments, defaults = sys.argv[1:], ["10000", "1000000"]
    points, images = (int(word) for word in [*arguments, *defaults[len(arguments) :]])
    print(describe())
    with tempfile.TemporaryDirectory() as root:
        points_part(points, root)
    with tempfile.TemporaryDirectory() as root:
        images_part(images, root)
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))


if __name__ == "__main__":
    main()
