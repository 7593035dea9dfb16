"""What a driver does at 10,000 sweep points and at 1,000,000 images, with the work itself left out.

    python benchmarks/scale.py [POINTS] [IMAGES]

Points: the graph, the plan of an empty store, then a store with a record for every step (its counts of 20 test images): plan, no-op with its
report, the report alone. Images: a weak CSV of so many rows, its manifest, and a trial's weak subset. Seconds, and the driver's memory after each.
"""

import io
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow as pa
from machine import describe

from chexseg_ray.artifacts import Record, Step, Store
from chexseg_ray.build import build, load_study, make_execution
from chexseg_ray.cluster import RaySession
from chexseg_ray.config import StudyConfig, load_config
from chexseg_ray.plan import plan, print_plan
from chexseg_ray.segmentation.mixing import weak_subset
from chexseg_ray.stages.counts import COUNTS
from chexseg_ray.stages.grouped import run_tasks
from chexseg_ray.stages.images import group_items
from chexseg_ray.sweep import run_study

TINY = Path(__file__).resolve().parents[1] / "tests" / "tiny.yaml"


def memory() -> float:
    """Resident now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print seconds and memory of a block."""
    start = time.perf_counter()
    yield
    print(f"{what:<70} {time.perf_counter() - start:7.1f} s   {memory():6.0f} MB", flush=True)


def config_of(points: int, root: str) -> StudyConfig:
    """tiny.yaml with so many points: 20 p x 2 inits x 5 sizes x trials."""
    ps = [round(0.04 * i, 2) for i in range(1, 21)]
    sweep = [f"sweep.p={ps}", "sweep.weak_n=[4, 8, 10, 12, 16]", "sweep.init=[random, chexpert]", f"sweep.trials={points // 200}"]
    return load_config(TINY, [f"store.root={root}", *sweep])


def fabricate(step: Step, store: Store, counts: pa.Table) -> None:
    """A record as if the step were built."""
    attempt = store.new_attempt(step)
    files = (attempt.write_table("counts.parquet", counts),) if step.name in ("evaluation", "benchmark") else ()
    names = step.config.get("pathologies", [])
    metrics = {"validation_auroc": 0.5, "selected": "best", "positive_masks": dict.fromkeys(names, 1), "positive_labels": {}}
    metrics |= {"patients": 1, "thresholds": {}, "images": 20, "absent": 0}
    metrics |= {"validation_miou": None, "history": [], "best_update": 1}  # nothing is chosen, so that nothing is predicted
    inputs = {role: child.fingerprint for role, child in step.inputs.items()}
    run = {"seconds": 1.0, "versions": {}}
    store.commit(Record(step.name, step.version, step.fingerprint, dict(step.config), inputs, attempt.name, files, 20, 0, metrics, run))


def points_part(points: int, root: str) -> None:
    """Graph, plan, no-op, report."""
    config = config_of(points, root)
    store = Store.open(root)
    with timed(f"graph of {points} points"):
        study, _ = load_study(config)
        steps = study.steps()
    with timed(f"plan of its {len(steps)} steps, nothing built"), redirect_stdout(io.StringIO()):
        print_plan(plan(study, store, config), study, store, config)
    rng = np.random.default_rng(0)
    names = list(config.data.pathologies)
    table = pa.Table.from_pylist(
        [
            {"cxr_id": f"x{i:03d}", "patient_id": f"x{i:03d}", "pathology": name, "resolution": where,
             **dict(zip(("intersection", "predicted", "truth"), sorted(rng.integers(0, 900, 3).tolist()), strict=True))}
            for i in range(20) for where in ("model", "original") for name in names
        ],
        schema=COUNTS,
    )  # fmt: skip
    with timed("(a record for every step)"):
        for step in steps:
            fabricate(step, store, table)
    with timed("plan, everything built"), redirect_stdout(io.StringIO()):
        print_plan(plan(study, store, config), study, store, config)
    with timed("the same sweep again: no-op with its report"), redirect_stdout(io.StringIO()):
        assert run_study(config) == 0
    with timed("and again"), redirect_stdout(io.StringIO()):
        assert run_study(config) == 0
    more = config_of(points + 200, root)
    with timed("plan of one trial more"), redirect_stdout(io.StringIO()):
        larger = load_study(more)[0]
        print_plan(plan(larger, store, more), larger, store, more)


def images_part(images: int, root: str) -> None:
    """A CSV, its manifest, a subset."""
    data = Path(root) / "data"
    (data / "CheXpert-v1.0").mkdir(parents=True)
    without_experts = ["data.expert_csv=null", "data.expert_masks=null", "data.benchmark_masks=null", "sweep.p=[0]", "pseudo_masks.thresholds=otsu"]
    without_experts += ["segmentation.thresholds=fixed", "segmentation.checkpoint=last"]
    config = load_config(TINY, [f"store.root={root}/store", f"data.root={data}", *without_experts])
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *(n.replace("Airspace", "Lung") for n in config.data.pathologies)]
    with (data / "CheXpert-v1.0" / "train.csv").open("w") as stream:
        stream.write(",".join(header) + "\n")
        for i in range(images):
            path = f"CheXpert-v1.0/train/patient{i // 4:06d}/study{i % 4}/view1_frontal.jpg"
            stream.write(f"{path},Male,60,Frontal,AP," + ",".join("1.0" if (i + k) % 7 == 0 else "" for k in range(10)) + "\n")
    (data / "CheXpert-v1.0" / "test_labels.csv").write_text("Path\n")
    (data / "CheXlocalize").mkdir()
    (data / "CheXlocalize" / "gt_segmentations_test.json").write_text("{}")
    store = Store.open(config.store.root)
    with timed(f"study of {images} images: sources hashed, graph"):
        study, source = load_study(config)
    step = next(s for s in study.upstream() if s.name == "manifest" and s.config["split"] == "weak")
    with timed("manifest: CSV checked, written"):
        record = build(step, store, make_execution(config, source, lambda: None, store))
    assert record.rows == images, record.rows
    with timed("its groups of 128, as the images stage hands them out"):
        columns = ["cxr_id", "path", "height", "width", "rle_original"]
        items = group_items(store.read_table(record, "manifest.parquet", columns))
    RaySession(dashboard=False, num_cpus=2).start()
    with timed(f"{len(items)} groups through Ray Data, nothing decoded"), redirect_stdout(io.StringIO()):
        run_tasks("images", ": groups", items, nothing, 1.0)
    ids = [f"patient{i:07d}" for i in range(images)]
    with timed("weak subset of 20,000 for the third trial"):
        weak_subset(ids, 0, 2, 20_000)


def nothing(row: dict[str, object]) -> dict[str, object]:
    """What a task of the images stage gives back, without its work."""
    return {"rows": 128, "files": [["images/part-00000.parquet", 1, "0" * 64]], "rejects": []}


def main() -> None:
    """Run and print."""
    points, images = (int(word) for word in (sys.argv[1:] + ["10000", "1000000"][len(sys.argv) - 1 :]))
    print(describe())
    with tempfile.TemporaryDirectory() as root:
        points_part(points, root)
    with tempfile.TemporaryDirectory() as root:
        images_part(images, root)
    print(json.dumps({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))


if __name__ == "__main__":
    main()
