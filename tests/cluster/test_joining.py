"""What a driver is told that cannot join its cluster, and what a cluster's own file says may come."""

import os
import socket
from pathlib import Path

import pytest
import yaml

from chexseg_ray.cluster import machine, nodes, session
from chexseg_ray.config.parse import load_config
from chexseg_ray.errors import InputError, TransientError

REPOSITORY = Path(__file__).resolve().parents[2]
PAPER = REPOSITORY / "configs" / "paper.yaml"
MISMATCH = (
    "Version mismatch: The cluster was started with:\n    Ray: 2.61.0\n    Python: 3.11.7\n"
    "This process was started with:\n    Ray: 2.60.0\n"
)


@pytest.fixture
def listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something listens at every address."""
    monkeypatch.setattr(session, "_refuse_dead", lambda *_: None)


@pytest.mark.usefixtures("listens")
@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        (RuntimeError(MISMATCH), InputError, "Ray: 2.61.0 .* install the cluster's versions here"),
        (
            ConnectionError("Failed to connect to Ray cluster"),
            TransientError,
            "is it up\\? .*RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH",
        ),
    ],
)
def test_a_cluster_that_cannot_be_joined_gives_one_line(
    raised: Exception, expected: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def fail(**_: object) -> None:
        raise raised

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(expected, match=words) as caught:
        session._join(2)
    assert "10.0.0.1:6379" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("listens")
def test_a_wrong_token_is_a_fault_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    def fail(**_: object) -> None:
        raise AuthenticationError("Invalid authentication token")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(InputError, match="RAY_AUTH_TOKEN_PATH must be set here too"):
        session._join(2)


def test_the_address_of_the_jobs_api_is_no_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(InputError, match="host:6379, or submit a job"):
        session._join(2)


def test_what_may_come_is_read_from_the_config_or_from_the_file_that_ray_up_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = {"CPU": 0.0}
    monkeypatch.setattr(nodes, "nodes", lambda: [head])
    monkeypatch.setattr(nodes, "_BOOTSTRAP", tmp_path / "ray_bootstrap_config.yaml")
    assert nodes.growth(load_config(PAPER)) == []
    said = load_config(PAPER, ["compute.autoscaling=[{num_cpus: 8, num_gpus: 1, max_nodes: 2}]"])
    assert nodes.growth(said) == [{"CPU": 8.0, "GPU": 1.0}] * 2
    (tmp_path / "ray_bootstrap_config.yaml").write_text((REPOSITORY / "cluster.yaml").read_text())
    found = nodes.growth(load_config(PAPER))
    kinds = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())["available_node_types"]
    assert found == [kinds["cpu"]["resources"]] * 4 + [kinds["gpu"]["resources"]] * 8
    cluster = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    del cluster["available_node_types"]["gpu"]["max_workers"]  # Ray's own default is then the cluster's
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(cluster))
    assert nodes.growth(load_config(PAPER)).count(kinds["gpu"]["resources"]) > 4
    with pytest.raises(InputError, match="has several nodes"):
        nodes.refuse_local_roots(load_config(PAPER, ["store.root=/a/folder"]))
    nodes.refuse_local_roots(load_config(PAPER, ["store.root=/a/folder", "compute.shared_folders=true"]))


def test_what_asks_for_more_than_the_drivers_node_has_gets_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    class Context:
        def get_node_id(self) -> str:
            return "head"

    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "head", "Resources": {"CPU": 1.0}}])
    small = "{num_cpus: 1, num_gpus: 0, min_actors: 0, max_actors: 0}"
    asked = [
        "compute.irnet={num_workers: 0, num_cpus: 2}",
        "compute.moco={num_workers: 0, num_gpus: 0.5}",
        "compute.classifier={num_workers: 0, num_cpus: 1}",
    ]
    changed = nodes.with_workers(load_config(PAPER, [*asked, f"compute.prediction={small}"])).compute
    assert (changed.irnet.num_workers, changed.moco.num_workers, changed.classifier.num_workers) == (1, 1, 0)
    assert changed.prediction.max_actors == 0
    for prediction in ("{num_gpus: 1}", "{num_cpus: 2}"):
        changed = nodes.with_workers(load_config(PAPER, [f"compute.prediction={prediction}"])).compute
        assert (changed.prediction.min_actors, changed.prediction.max_actors) == (1, 1)


@pytest.mark.parametrize(
    ("visible", "number"),
    [(None, 3), ("0,1", 2), ("-1", 0), ("", 0), ("0,-1,1", 1), ("GPU-1,GPU-2", 2), ("0,1,2,3", 3)],
)
def test_gpus_are_counted_that_cuda_shows(
    visible: str | None, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor i in 0 1 2; do echo GPU $i: NVIDIA; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.gpus_here() == number


def test_an_address_where_nothing_listens_is_refused_before_ray_tries_for_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was called"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test's Ray may run
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(TransientError, match=rf"^RAY_ADDRESS={address}: no cluster answers .*is it up\?"):
            session.RaySession(dashboard=False, num_cpus=1).start()


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def fail(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because ...")  # as Ray does

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # another test's Ray may run
    with pytest.raises(TransientError, match=r"^Ray does not start .The current node timed out .*run again$"):
        session.RaySession(dashboard=False, num_cpus=1).start()


def test_what_is_lost_of_ray_may_be_tried_again_and_a_bug_stays_a_bug() -> None:
    from ray import exceptions

    for lost in (exceptions.LocalRayletDiedError(), exceptions.RaySystemError("gone"), ConnectionResetError("reset")):
        with pytest.raises(TransientError, match="Ray lost a process or node"), session.ray_works():
            raise lost
    with pytest.raises(ZeroDivisionError), session.ray_works():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "[" * 3000,
        "a: \0",
        "a: [e:KEY@host: b: c",
        "a: \xff",
        "- a",
        "available_node_types: {}\nhead_node_type: a",
        "available_node_types: {b: {}}\nhead_node_type: a\nmax_workers: 1",
        "available_node_types: {b: {resources: {CPU: many}}}\nhead_node_type: a\nmax_workers: 1",
        "available_node_types: {b: {resources: {CPU: 1}}}\nhead_node_type: a\nmax_workers: .nan",
    ],
    ids=lambda text: text[:20],
)
def test_a_damaged_file_of_ray_up_is_one_line(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ray_bootstrap_config.yaml"
    monkeypatch.setattr(nodes, "_BOOTSTRAP", path)
    monkeypatch.setattr(nodes, "nodes", lambda: [{"CPU": 4.0}])
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(
        InputError, match=r"is not the file of a cluster .*: repair it, or set compute.autoscaling"
    ) as e:
        nodes.growth(load_config(PAPER))
    assert "\n" not in str(e.value)
    assert "KEY" not in str(e.value)
    assert len(str(e.value)) < 600


def test_a_machine_without_a_way_to_the_internet_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with session._filtered_stderr():
        os.write(2, b"x.cc:330: Failed to determine local IP via external connectivity to: 8.8.8.8:53\nnews\n")
    assert capfd.readouterr().err == "news\n"
