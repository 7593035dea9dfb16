"""Real clusters on this machine's loopback for tests: several raylets, or a head whose fake cloud adds and takes nodes.

Run as a script it holds a cluster and answers one JSON line for each command line: nodes | lose NUMBER | join CPUS | end.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STORE_BYTES = 100_000_000  # of each node's object store
HEAD, FAKE_HEAD = "f" * 51 + "00000", "ray.head.default"  # the id and the type that Ray's fake provider expects of a head


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def marked(variable: str) -> list[int]:
    """The living processes that have `NAME=value` in their environment: nodes that a fake cloud started are nobody's children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if variable.encode() in (folder / "environ").read_bytes().split(b"\0") and " Z " not in (folder / "stat").read_text():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def kill_marked(variable: str) -> None:
    """End them all."""
    for pid in marked(variable):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


class Nodes:
    """A cluster that a process of its own holds; `kind` is several or growing."""

    def __init__(self, kind: str, env: dict[str, str]) -> None:
        self._folder = tempfile.mkdtemp(prefix="cx")  # short: Ray's sockets lie below
        self._mark = f"chexseg-test-{secrets.token_hex(8)}"
        # a head at 127.0.0.1 that other nodes join: without the loopback setting, which refuses them
        self.env = env | {"RAY_TMPDIR": self._folder, "HOME": self._folder, "CHEXSEG_TEST_MARK": self._mark, "RAY_AUTH_MODE": "disabled"}
        self.env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
        self.env |= {"GLOO_SOCKET_IFNAME": "lo", "RAY_BACKEND_LOG_LEVEL": "fatal"}
        self._process = subprocess.Popen([sys.executable, __file__, kind], env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.address = self._answer()
        except AssertionError:
            self.end()
            raise
        self.env["RAY_ADDRESS"] = self.address

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise AssertionError("the cluster's process has ended")

    def ask(self, command: str) -> Any:
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)
        return self._answer()

    def nodes(self) -> list[dict[str, Any]]:
        """Those alive, the head left out: {id, cpus, gpus, used}."""
        found: list[dict[str, Any]] = self.ask("nodes")
        return found

    def until(self, there: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < deadline, self.nodes()
            time.sleep(0.2)

    def end(self) -> None:
        """End every process of this cluster, by its mark."""
        mark = f"CHEXSEG_TEST_MARK={self._mark}"
        self._process.terminate()
        deadline = time.monotonic() + 90
        while marked(mark) and time.monotonic() < deadline:
            kill_marked(mark)
            time.sleep(0.2)
        self._process.communicate()
        assert not marked(mark)


def _answer(value: Any) -> None:
    os.write(_ANSWERS, f"answer {json.dumps(value)}\n".encode())


def _living() -> list[dict[str, Any]]:
    import ray
    from ray._private import state

    free = state.available_resources_per_node()
    rows = []
    for node in ray.nodes():
        total = node["Resources"]
        if node["Alive"] and "node:__internal_head__" not in total:
            used = total.get("CPU", 0) - free.get(node["NodeID"], {}).get("CPU", 0) if node["NodeID"] in free else 0
            rows.append({"id": node["NodeID"], "cpus": total.get("CPU", 0), "gpus": total.get("GPU", 0), "used": used})
    return rows


def _hold_several() -> None:
    """A head without CPUs for work and two nodes of one CPU."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES})
    workers = [cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(2)]
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
    _answer(cluster.address)
    for line in sys.stdin:
        command, *words = line.split()
        if command == "nodes":
            _answer(_living())
        elif command == "lose":
            lost = next(worker for worker in workers if worker.node_id == words[0])
            cluster.remove_node(lost, allow_graceful=False)
            _answer(None)
        else:
            workers.append(cluster.add_node(num_cpus=int(words[0]), object_store_memory=STORE_BYTES))
            _answer(workers[-1].node_id)


def _hold_growing() -> None:
    """A head without CPUs for work; up to two nodes of one CPU and one with a GPU come when they are asked for, and go 12 s after."""
    import ray

    port, folder = free_port(), os.environ["RAY_TMPDIR"]
    address = f"127.0.0.1:{port}"
    kinds = {"cpu": ({"CPU": 1}, 2), "gpu": ({"CPU": 1, "GPU": 1}, 1)}
    types = {
        name: {"node_config": {}, "min_workers": 0, "max_workers": most, "resources": {**own, "object_store_memory": STORE_BYTES}}
        for name, (own, most) in kinds.items()
    }
    empty: dict[str, Any] = {"auth": {}, "docker": {}, "file_mounts": {}}
    lists = "cluster_synced_files rsync_exclude rsync_filter initialization_commands setup_commands head_setup_commands worker_setup_commands"
    empty |= {name: [] for name in [*lists.split(), "head_start_ray_commands", "worker_start_ray_commands"]}
    provider = {
        "type": "external", "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider", "gcs_address": address,
        "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True, "launch_multiple": True, "head_node_id": HEAD,
    }  # fmt: skip
    config = empty | {
        "cluster_name": "fake", "max_workers": 3, "idle_timeout_minutes": 0.2, "upscaling_speed": 1000.0, "provider": provider,
        "available_node_types": types | {FAKE_HEAD: {"node_config": {}, "max_workers": 0, "resources": {"CPU": 0}}}, "head_node_type": FAKE_HEAD,
    }  # fmt: skip
    file = Path(folder) / "autoscaling.json"
    file.write_text(json.dumps(config))
    env = os.environ | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1"}
    env |= {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    start = ["ray", "start", "--head", "--num-cpus=0", "--num-gpus=0", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
    start += [f"--object-store-memory={STORE_BYTES}", f"--autoscaling-config={file}", "--disable-usage-stats"]
    subprocess.run(start, env=env, check=True, stdout=subprocess.DEVNULL, timeout=300)
    ray.init(address=address, logging_level="error", log_to_driver=False)
    _answer(address)
    for line in sys.stdin:
        assert line.split() == ["nodes"]
        _answer(_living())


if __name__ == "__main__":
    _ANSWERS = os.dup(1)  # for answers alone: what Ray prints in between, in threads of its own, goes to the other stream
    os.dup2(2, 1)
    {"several": _hold_several, "growing": _hold_growing}[sys.argv[1]]()
