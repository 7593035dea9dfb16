"""Real clusters on this machine, for tests: several raylets, or a head whose fake cloud adds and removes nodes.

As a script, with `several` or `growing` as its argument, this file holds a cluster until its input ends. It answers
each command line by one line, `answer` and a JSON value: nodes | lose NODE_ID | join CPUS (a growing cluster knows only
`nodes`). These clusters ask for no token and listen on every network card, so .ci/run leaves the tests only the
loopback.
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

from slow.processes import of_environment

STORE_BYTES = 100_000_000  # of each node's object store
# The id and the type that Ray's fake provider expects of a head
HEAD, FAKE_HEAD = "f" * 51 + "00000", "ray.head.default"


def free_port() -> int:
    """Return a TCP port of the loopback that no process uses now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def marked(variable: str) -> list[int]:
    """Find processes by their environment, because nodes that a fake cloud started are children of no process of ours.

    Args:
        variable: NAME=value.

    Returns:
        The ids of the living processes that have it, and of their children.
    """
    return [process.pid for process in of_environment(variable)]


def kill_marked(variable: str) -> None:
    """Kill all processes that have NAME=value in their environment."""
    for pid in marked(variable):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


class Nodes:
    """A cluster that a separate process holds.

    Args:
        kind: `several` for a head and two nodes, and commands that remove and add nodes; `growing` for a head with an
            autoscaler.
        env: environment of that process; `env` of the object adds what jobs need to find the cluster.

    Raises:
        AssertionError: the cluster does not start.
    """

    def __init__(self, kind: str, env: dict[str, str]) -> None:
        self._folder = tempfile.mkdtemp(prefix="cx")  # short: Ray's sockets lie below
        self._mark = f"chexseg-test-{secrets.token_hex(8)}"
        # RaySession's loopback setting is not set here: with it, a head at 127.0.0.1 refuses other nodes
        self.env = env | {"RAY_TMPDIR": self._folder, "HOME": self._folder, "CHEXSEG_TEST_MARK": self._mark}
        self.env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        self.env |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        self.env |= {"GLOO_SOCKET_IFNAME": "lo", "RAY_BACKEND_LOG_LEVEL": "fatal"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, kind], env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self.address = self._answer()
        except AssertionError:
            self.end()
            raise
        self.env["RAY_ADDRESS"] = self.address

    def _answer(self) -> Any:
        """Wait for the process's next answer."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise AssertionError("the cluster's process has ended")

    def ask(self, command: str) -> Any:
        """Send a command of this file's script and return the answer."""
        assert self._process.stdin is not None
        print(command, file=self._process.stdin, flush=True)
        return self._answer()

    def nodes(self) -> list[dict[str, Any]]:
        """Return the living nodes except the head, each as {id, cpus, gpus, used}, with the number of used CPUs."""
        found: list[dict[str, Any]] = self.ask("nodes")
        return found

    def until(self, is_there: Callable[[], bool], seconds: float = 300) -> None:
        """Wait until something is there.

        Args:
            is_there: returns whether it is.
            seconds: the most to wait.

        Raises:
            AssertionError: it is not there after that time.
        """
        deadline = time.monotonic() + seconds
        while not is_there():
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
    """Write an answer to the process that holds this script's other end."""
    os.write(_ANSWERS, f"answer {json.dumps(value)}\n".encode())


def _living() -> list[dict[str, Any]]:
    """Return what Nodes.nodes returns."""
    import ray
    from ray._private import state

    free = state.available_resources_per_node()
    rows = []
    for node in ray.nodes():
        total = node["Resources"]
        if node["Alive"] and "node:__internal_head__" not in total:
            used = 0
            if node["NodeID"] in free:
                used = total.get("CPU", 0) - free[node["NodeID"]].get("CPU", 0)
            rows.append({"id": node["NodeID"], "cpus": total.get("CPU", 0), "gpus": total.get("GPU", 0), "used": used})
    return rows


def _hold_several() -> None:
    """Hold a head without CPUs for work and two nodes of one CPU; the input's commands remove and add nodes."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES},
    )
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


def _autoscaling(address: str) -> dict[str, Any]:
    """Return the autoscaler's configuration of a growing cluster.

    Args:
        address: host:port of the head.
    """
    types: dict[str, Any] = {}
    for name, resources, most in (("cpu", {"CPU": 1}, 2), ("gpu", {"CPU": 1, "GPU": 1}, 1)):
        offered = {**resources, "object_store_memory": STORE_BYTES}
        types[name] = {"node_config": {}, "min_workers": 0, "max_workers": most, "resources": offered}
    types[FAKE_HEAD] = {"node_config": {}, "max_workers": 0, "resources": {"CPU": 0}}
    empty_lists = ["cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands"]
    empty_lists += ["head_setup_commands", "worker_setup_commands"]
    empty_lists += ["head_start_ray_commands", "worker_start_ray_commands"]
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": address,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": HEAD,
    }
    return {
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in empty_lists},
        "cluster_name": "fake",
        "max_workers": 3,
        "idle_timeout_minutes": 0.2,
        "upscaling_speed": 1000.0,
        "provider": provider,
        "available_node_types": types,
        "head_node_type": FAKE_HEAD,
    }


def _hold_growing() -> None:
    """Hold a head without CPUs for work, to which Ray's autoscaler adds nodes of a fake cloud when work asks for them.

    Up to two nodes have one CPU, and one has a CPU and a GPU; an idle node goes after 12 s.
    """
    import ray

    port, folder = free_port(), os.environ["RAY_TMPDIR"]
    address = f"127.0.0.1:{port}"
    file = Path(folder) / "autoscaling.json"
    file.write_text(json.dumps(_autoscaling(address)))
    env = os.environ | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1"}
    env |= {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    start = ["ray", "start", "--head", "--num-cpus=0", "--num-gpus=0", f"--port={port}", "--node-ip-address=127.0.0.1"]
    start += [f"--object-store-memory={STORE_BYTES}", f"--autoscaling-config={file}"]
    start += ["--include-dashboard=false", "--disable-usage-stats"]
    subprocess.run(start, env=env, check=True, stdout=subprocess.DEVNULL, timeout=300)
    ray.init(address=address, logging_level="error", log_to_driver=False)
    _answer(address)
    for line in sys.stdin:
        assert line.split() == ["nodes"]
        _answer(_living())


if __name__ == "__main__":
    # Only answers go to this output: what Ray's threads print in between goes to the error stream
    _ANSWERS = os.dup(1)
    os.dup2(2, 1)
    {"several": _hold_several, "growing": _hold_growing}[sys.argv[1]]()
