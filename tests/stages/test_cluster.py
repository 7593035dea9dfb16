"""A study on a cluster of several nodes, whose head has no CPUs for work; nodes that come and go."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pandas as pd
import pyarrow.fs as pafs
import pytest
from clusters import Nodes
from studies import REPOSITORY, TINY, the_error

pytestmark = pytest.mark.ray

SHARED = "compute.shared_folders=true"
RESULTS = Path("report") / "tiny" / "results.csv"


@pytest.fixture(scope="module")
def cluster(private_home: dict[str, str]) -> Iterator[Nodes]:
    """A head and two nodes of one CPU."""
    nodes = Nodes("several", private_home)
    yield nodes
    nodes.end()


def sweep(nodes: Nodes, store: object, *overrides: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start jobs/sweep.py as a driver of the cluster."""
    command = [sys.executable, str(REPOSITORY / "jobs" / "sweep.py"), str(TINY), f"store.root={store}", *overrides]
    return subprocess.Popen(
        command, env=nodes.env | (env or {}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str], code: int, seconds: float = 300) -> tuple[str, str]:
    out, error = process.communicate(timeout=seconds)
    assert process.returncode == code, out + error
    return out, error


def fault(process: subprocess.Popen[str], code: int) -> str:
    """The one line of an error that comes within two minutes; what was kept, and how to go on, may follow.

    On a machine without a network, Ray's C++ logger writes lines of its own above it.
    """
    assert process.stdout is not None
    assert process.stdout.readline().startswith("store: ")  # Python, torch and the storage are there
    lines = ended(process, code, 120)[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    assert all(" W " in line or " I " in line for line in lines[:start]), lines
    return the_error("\n".join(lines[start:]))


@pytest.fixture
def upstream(tiny_store: Path, tmp_path: Path) -> Path:
    """A store that holds everything but the sweep's trials."""
    left_out = shutil.ignore_patterns("segmentation", "evaluation", "report", "*.txt")
    return Path(shutil.copytree(tiny_store, tmp_path / "store", ignore=left_out))


def test_a_local_root_is_refused(cluster: Nodes, tmp_path: Path) -> None:
    error = fault(sweep(cluster, tmp_path / "store"), 2)
    assert re.fullmatch(
        r"error: store.root=.*: a local folder, and the cluster has several nodes: .*compute.shared_folders=true.*",
        error,
    )
    assert not list(tmp_path.glob("store/*/*")), "nothing was built"


def test_what_the_cluster_cannot_give_is_said_before_anything_waits_for_it(cluster: Nodes, tmp_path: Path) -> None:
    overrides = [SHARED, "compute.cams={num_cpus: 1, num_gpus: 1, min_actors: 1, max_actors: 1}"]
    start = time.monotonic()
    error = fault(sweep(cluster, tmp_path / "store", *overrides), 2)
    assert time.monotonic() - start < 30
    asked = "compute.cams asks for 1 x 1 CPU + 1 GPU and 1 x 1 CPU"
    there = "the cluster has 2 nodes of 1 CPU, 1 node of no CPU for work"
    assert error.startswith(f"error: {asked}; {there}: lower compute.cams")


@pytest.mark.slow
def test_nodes_that_are_lost_and_join_in_the_middle_of_a_sweep_change_nothing(
    cluster: Nodes, upstream: Path, tiny_store: Path
) -> None:
    driver = sweep(cluster, upstream, SHARED, "compute.state_seconds=0")
    cluster.until(lambda: len(list(upstream.glob("segmentation/*/state/*"))) >= 2)
    cluster.until(lambda: sum(node["used"] >= 1 for node in cluster.nodes()) == 2)
    working = [node for node in cluster.nodes() if node["used"] >= 1]
    cluster.ask(f"lose {working[0]['id']}")
    joined = cluster.ask("join 1")
    out, _ = ended(driver, 0)
    assert out.count("sweep: points 2/2") == 1, "one fit from beginning to end"
    assert "failed" not in out
    assert (upstream / RESULTS).read_bytes() == (tiny_store / RESULTS).read_bytes()
    assert {node["id"] for node in cluster.nodes()} == {working[1]["id"], joined}


@pytest.mark.slow
def test_nodes_that_are_lost_during_a_training_and_during_cams_change_nothing(
    cluster: Nodes, tiny_store: Path, tmp_path: Path
) -> None:
    """A node is lost as its worker trains a classifier, and one as its actor has made half of the CAMs."""
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    for name in ("cams", "classifier", "evaluation", "report"):
        for path in store.glob(f"{name}/*"):
            record = json.loads((path / "record.json").read_text()) if name == "classifier" else {"config": {}}
            if record["config"].get("architecture") in (None, "resnet18"):
                shutil.rmtree(path)

    def lose_a_working_node() -> None:
        cluster.until(lambda: any(node["used"] >= 1 for node in cluster.nodes()))
        lost = next(node for node in cluster.nodes() if node["used"] >= 1)
        cluster.ask(f"lose {lost['id']}")
        cluster.ask("join 1")

    training = "compute.classifier={num_workers: 1, num_cpus: 1, num_gpus: 0, threads: 1}"
    driver = sweep(cluster, store, SHARED, "compute.state_seconds=0", training)
    cluster.until(lambda: bool(list(store.glob("cams/*/*/cams/*/*.parquet"))))
    lose_a_working_node()
    assert not list(store.glob("cams/*/record.json"))
    cluster.until(lambda: bool(list(store.glob("classifier/*/state/*3-*"))))
    lose_a_working_node()
    out, _ = ended(driver, 0)
    assert "failed: " not in out
    assert (store / RESULTS).read_bytes() == (tiny_store / RESULTS).read_bytes()


@pytest.mark.slow
def test_two_replicas_on_two_nodes_compute_what_one_process_computes(cluster: Nodes, tmp_path: Path) -> None:
    """Loss, gradients and statistics in float64, by Ray Train over gloo."""
    script = f"""
import sys
sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / "tests")!r}, {str(REPOSITORY / "tests" / "engine")!r}]
import ray, torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
import test_replicas
ray.init(log_to_driver=False)
ray.cloudpickle.register_pickle_by_value(test_replicas)

def loop(config):
    import ray.train
    from chexseg_ray.engine.replicas import Replica
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    replica = Replica.here()
    for name, update in test_replicas.UPDATES.items():
        torch.save(update(replica), f"{{config['folder']}}/{{name}}-{{replica.rank}}.pt")
    open(f"{{config['folder']}}/node-{{replica.rank}}", "w").write(ray.get_runtime_context().get_node_id())

TorchTrainer(loop, train_loop_config={{"folder": {str(tmp_path)!r}}}, torch_config=TorchConfig(backend="gloo"),
             scaling_config=ScalingConfig(num_workers=2, resources_per_worker={{"CPU": 1}}),
             run_config=RunConfig(name="two", storage_path={str(tmp_path / "train")!r})).fit()
torch.set_default_dtype(torch.float64)
for name, update in test_replicas.UPDATES.items():
    whole = update(test_replicas.Replica(0, 1))
    for rank in (0, 1):
        found = torch.load(f"{tmp_path!s}/{{name}}-{{rank}}.pt", weights_only=True)
        assert found.keys() == whole.keys()
        for key, tensor in whole.items():
            assert torch.allclose(found[key], tensor, rtol=1e-6, atol=1e-8), (name, rank, key)
"""
    folders = REPOSITORY, REPOSITORY / "tests", REPOSITORY / "tests" / "engine"
    env = cluster.env | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len({(tmp_path / f"node-{rank}").read_text() for rank in (0, 1)}) == 2, "one on each node"


@pytest.mark.slow
def test_the_training_pool_is_on_a_node_once_for_all_its_trials(cluster: Nodes, tmp_path: Path) -> None:
    """Six readers on each of two nodes see the same 20 MB without copying them."""
    script = """
import json
import sys
import numpy as np
import ray
ray.init(log_to_driver=False)
from chexseg_ray.engine.pool import Rows, shared_rows
chunks = [np.full((2048, 5000), i, dtype=np.uint8) for i in range(2)]
shared = {"x/images": ({str(i): i for i in range(4096)}, [ray.put(chunk) for chunk in chunks])}

@ray.remote(num_cpus=0.15)
class Reader:
    def read(self, shared):
        self.rows = shared_rows(shared, "x/images", ["5", "3000"], lambda: None)
        assert int(self.rows.gather(["3000"])[0, 0]) == 1
        lines = [line for line in open("/proc/self/maps") if "plasma" in line or "/dev/shm" in line]
        bounds = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in lines]
        places = [chunk.__array_interface__["data"] for chunk in self.rows.chunks]
        for place, read_only in places:
            assert read_only and any(low <= place < high for low, high in bounds), "in shared memory, read-only"
        return ray.get_runtime_context().get_node_id()

readers = [Reader.options(scheduling_strategy="SPREAD").remote() for _ in range(12)]
open(sys.argv[1], "w").write(json.dumps(ray.get([reader.read.remote(shared) for reader in readers])))
"""
    env = cluster.env | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", script, str(tmp_path / "places")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    places = json.loads((tmp_path / "places").read_text())
    assert len(set(places)) == 2
    assert len(places) == 12


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, dict[str, str]]]:
    """An S3 endpoint on loopback with one bucket: what comes behind a URI's path, and the credentials' variables."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket="bucket")
    yield f"?endpoint_override={host}:{port}&scheme=http", keys | {"AWS_EC2_METADATA_DISABLED": "true"}
    server.stop()


def test_a_study_whose_data_and_store_are_on_s3_runs_on_nodes_that_an_autoscaler_adds(
    s3: tuple[str, dict[str, str]],
    private_home: dict[str, str],
    phantom_root: Path,
    tiny_store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is local, and the numbers are the local study's.

    Nodes come when a stage asks for them, and are gone when the study is done.
    """
    where, keys = s3
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    bucket, _ = pafs.FileSystem.from_uri(f"s3://bucket{where}")
    pafs.copy_files(str(phantom_root), "bucket/data", destination_filesystem=bucket)
    kinds = "compute.autoscaling=[{num_cpus: 1, num_gpus: 0, max_nodes: 2}, {num_cpus: 1, num_gpus: 1, max_nodes: 1}]"
    arguments = f"s3://bucket/study{where}", f"data.root=s3://bucket/data{where}", kinds
    nodes = Nodes("growing", private_home | keys)
    try:
        assert nodes.nodes() == []
        driver = sweep(nodes, *arguments)
        nodes.until(lambda: bool(nodes.nodes()))
        assert re.search(r"s3://bucket/study.* in use by process \d+ on .* since ", fault(sweep(nodes, *arguments), 75))
        most = 0
        while driver.poll() is None:
            if bucket.get_file_info("bucket/study/segmentation").type == pafs.FileType.Directory:
                most = max(most, sum(node["used"] >= 1 for node in nodes.nodes()))
            time.sleep(0.3)
        out, error = ended(driver, 0)
        assert most >= 2, "the trials had a node each"
        nodes.until(lambda: nodes.nodes() == [])
        assert keys["AWS_SECRET_ACCESS_KEY"] not in out + error
    finally:
        nodes.end()
    with bucket.open_input_file(f"bucket/study/{RESULTS}") as stream:
        found = pd.read_csv(BytesIO(stream.read()))
    expected = pd.read_csv(tiny_store / RESULTS)
    pd.testing.assert_frame_equal(found.drop(columns="record"), expected.drop(columns="record"))
