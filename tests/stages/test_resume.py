"""A training that is killed goes on from its state, and ends with the same bytes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from studies import IRNET, TINY, tiny

from chexseg_ray.engine.execution import make_execution
from chexseg_ray.store.step import Step
from chexseg_ray.store.store import Store
from chexseg_ray.study.sources import load_study
from chexseg_ray.sweep.build import build

pytestmark = pytest.mark.ray

BUILD = """
import sys
from chexseg_ray.config.parse import load_config
from chexseg_ray.engine.execution import make_execution
from chexseg_ray.store.store import Store
from chexseg_ray.study.sources import load_study
from chexseg_ray.sweep.build import build
config = load_config(sys.argv[1], [f"store.root={sys.argv[2]}", "compute.state_seconds=0", *sys.argv[4:]])
store = Store.open(config.store.root)
study, source = load_study(config)
step = next(s for s in study.steps() if s.address == sys.argv[3])
build(step, store, make_execution(config, source, lambda: None))
"""


MOCO = "sweep.init=[random, chexpert, moco]"
ONE_THREAD = [
    IRNET,
    MOCO,
    "moco.num_updates=9",
    *(f"compute.{stage}.threads=1" for stage in ("classifier", "moco", "irnet")),
]


def find_step(store: Path, name: str, architecture: str | None) -> Step:
    study, _ = load_study(tiny(store, *ONE_THREAD))
    return next(s for s in study.steps() if s.name == name and architecture in (None, s.config.get("architecture")))


def weights_of(store: Path, step: Step) -> tuple[str, list[dict[str, float]]]:
    record = Store.open(str(store)).find(step)
    assert record is not None
    return next(f.sha256 for f in record.files if f.path == "weights.safetensors"), record.metrics["history"]


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        pytest.param("classifier", "resnet18", marks=pytest.mark.slow),
        pytest.param("moco", None, marks=pytest.mark.slow),
        pytest.param("irnet", None, marks=pytest.mark.slow),
        pytest.param("segmentation", None, marks=pytest.mark.slow),  # tests/stages/test_chaos.py kills one too
    ],
)
def test_a_killed_training_ends_byte_equal_to_an_undisturbed_one(
    name: str, architecture: str | None, irnet_copy: Path, tmp_path: Path, private_home: dict[str, str]
) -> None:
    step = find_step(irnet_copy, name, architecture)
    shutil.rmtree(irnet_copy / step.address, ignore_errors=True)
    undisturbed = Path(shutil.copytree(irnet_copy, tmp_path / "undisturbed"))
    config = tiny(undisturbed, *ONE_THREAD)
    store = Store.open(str(undisturbed))
    _, source = load_study(config)
    build(step, store, make_execution(config, source, lambda: None))

    arguments = [sys.executable, "-c", BUILD, str(TINY), str(irnet_copy), step.address, *ONE_THREAD]
    process = subprocess.Popen(arguments, env=private_home, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    after = "000000003" if name == "irnet" else "000000005" if name == "moco" else "000000007"
    states = irnet_copy / step.address / "state"
    deadline = time.monotonic() + 120
    while not any(p.name[:9] >= after for p in states.glob("0*") if not p.name.endswith(".tmp")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert Store.open(str(irnet_copy)).find(step) is None
    newest = sorted(p.name for p in states.iterdir() if not p.name.endswith(".tmp"))[-1]
    # A kill in the middle of writing leaves such a file.
    (states / f"{int(newest[:9]) + 1:09d}-{newest[10:]}").write_bytes(b"half a state")
    subprocess.run(arguments, env=private_home, check=True, timeout=200, stdout=subprocess.DEVNULL)
    assert weights_of(irnet_copy, step) == weights_of(undisturbed, step)
    assert not states.exists(), "a built step keeps no state"


def test_a_worker_group_of_one_gives_the_bytes_of_local_mode(store_copy: Path, private_ray) -> None:  # type: ignore[no-untyped-def]
    step = find_step(store_copy, "classifier", "resnet18")
    hashes = []
    for workers in (0, 1):
        shutil.rmtree(store_copy / step.address)
        resources = f"compute.classifier={{num_workers: {workers}, num_cpus: 1, num_gpus: 0, threads: 1}}"
        config = tiny(store_copy, *ONE_THREAD, resources)
        store = Store.open(str(store_copy))
        _, source = load_study(config)
        record = build(step, store, make_execution(config, source, private_ray))
        assert record.run["threads"] == 1
        hashes.append(weights_of(store_copy, step))
    assert hashes[0] == hashes[1]
