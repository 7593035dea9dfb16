"""The sweep as a submitted job with token authentication, on loopback only.

The tests check its exit codes, metadata, metrics and trainings, and that a job which was stopped goes on.
"""

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters import free_port, kill_marked, marked
from studies import REPOSITORY, TINY

from chexseg_ray.engine.prometheus import METRICS

pytestmark = pytest.mark.ray

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


class Head:
    """`ray start --head` as the README has it, on ports of its own."""

    def __init__(self, env: dict[str, str]) -> None:
        folder = Path(tempfile.mkdtemp(prefix="cx"))  # short: Ray's sockets lie below
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        self.token = token.read_text()
        self.port, self.dashboard, self.metrics = free_port(), free_port(), free_port()
        self.env = env | {
            "HOME": str(folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_TMPDIR": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_metrics_report_interval_ms": "1000",
        }
        start = ["ray", "start", "--head", "--num-cpus=2", "--disable-usage-stats"]
        hosts = ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
        ports = [f"--port={self.port}", f"--dashboard-port={self.dashboard}", f"--metrics-export-port={self.metrics}"]
        ports += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
        self.process = subprocess.Popen(
            [*start, *hosts, *ports, "--block"],
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.address = f"http://127.0.0.1:{self.dashboard}"
        deadline = time.monotonic() + 300
        while self.get("/api/jobs/") is None:
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.5)

    def get(self, path: str, method: str = "GET") -> object:
        """The dashboard's answer, or None while there is none."""
        request = urllib.request.Request(
            f"{self.address}{path}", headers={"Authorization": f"Bearer {self.token}"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            return None

    def submit(self, *words: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """`ray job submit` as the README has it."""
        submit = ["ray", "job", "submit", "--address", self.address, "--working-dir", ".", *flags]
        command = [*submit, "--", "python", "jobs/sweep.py", *words]
        return subprocess.run(
            command, env=self.env, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
        )

    def job(self, submission: str) -> dict[str, object]:
        found = self.get(f"/api/jobs/{submission}")
        assert isinstance(found, dict)
        return found

    def until(self, there: Callable[[], bool], seconds: float, what: Callable[[], object] = lambda: "") -> None:
        deadline = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < deadline, what()
            time.sleep(0.2)

    def processes(self) -> list[int]:
        """All that have this head's RAY_TMPDIR."""
        return marked(f"RAY_TMPDIR={self.env['RAY_TMPDIR']}")

    def end(self) -> None:
        kill_marked(f"RAY_TMPDIR={self.env['RAY_TMPDIR']}")
        self.process.wait(90)


@pytest.fixture(scope="module")
def head(private_home: dict[str, str]) -> Iterator[Head]:
    found = Head(private_home)
    yield found
    found.end()


def submission_of(done: subprocess.CompletedProcess[str]) -> str:
    found = re.search(r"raysubmit_\w+", done.stdout + done.stderr)
    assert found, done.stdout + done.stderr
    return found.group()


class Scrapes:
    """What Prometheus would have seen: the names of series, and every label of this project's."""

    def __init__(self, port: int) -> None:
        self.names: set[str] = set()
        self.labels: set[tuple[str, str]] = set()
        self._url, self._ended = f"http://127.0.0.1:{port}/metrics", threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(1.0):
            try:
                with urllib.request.urlopen(self._url, timeout=5) as answer:
                    text = answer.read().decode()
            except OSError:
                continue
            for line in text.splitlines():
                if line.startswith("ray_chexseg_"):
                    self.names.add(line.split("{")[0])
                    self.labels.update(re.findall(r'(stage|state|method|p)="([^"]*)"', line))

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


def series(name: str) -> str:
    return f"ray_chexseg_{name}" + {"counter": "_total", "gauge": "", "histogram": "_bucket"}[METRICS[name].kind]


def test_a_job_that_is_stopped_goes_on_when_it_is_submitted_again(head: Head, tiny_store: Path, tmp_path: Path) -> None:
    """The job has one encoder classifier, in a worker group, and the sweep left to build.

    The test stops the first job in the middle of the sweep.
    """
    left_out = shutil.ignore_patterns("segmentation", "evaluation", "report", "*.txt")
    store = Path(shutil.copytree(tiny_store, tmp_path / "store", ignore=left_out))
    for record in store.glob("classifier/*/record.json"):
        if json.loads(record.read_text())["config"]["architecture"] == "resnet18":
            shutil.rmtree(record.parent)
    words = [
        str(TINY),
        f"store.root={store}",
        "compute.classifier={num_workers: 1, num_cpus: 1, num_gpus: 0, threads: 2}",
        "compute.state_seconds=0",
    ]
    scrapes = Scrapes(head.metrics)

    stopped = submission_of(head.submit(*words, flags=("--no-wait",)))
    head.until(lambda: bool(list(store.glob("segmentation/*/state/*"))), 240)
    head.get(f"/api/jobs/{stopped}/stop", method="POST")  # what `ray job stop` sends, without its start of seconds
    head.until(lambda: head.job(stopped)["status"] == "STOPPED", 90)

    def orphans() -> list[bytes]:
        """The driver, and all processes that compute for it.

        Ray's own detached actors (statistics of Data and Train) stay with the cluster.
        """
        found = [read(pid, "cmdline").strip(b"\0 ") for pid in head.processes()]
        names = b"_StatsActor _AutoscalingCoordinatorActor TrainStateActor IDLE DashboardAgent RuntimeEnvAgent"
        rays_actors = tuple(b"ray::" + name for name in names.split())
        return [
            line
            for line in found
            if b"jobs/sweep.py" in line or (line.startswith(b"ray::") and not line.startswith(rays_actors))
        ]

    head.until(lambda: not orphans(), 90, orphans)
    assert not list(store.glob("evaluation/*/record.json"))

    done = head.submit(*words)
    scrapes.end()
    assert done.returncode == 0, done.stdout + done.stderr
    job = head.job(submission_of(done))
    assert (job["status"], job["driver_exit_code"]) == ("SUCCEEDED", 0)
    assert job["metadata"] == {"study": "tiny", "config": " ".join(words), "store": str(store)}
    results = Path("report") / "tiny" / "results.csv"
    assert (store / results).read_bytes() == (tiny_store / results).read_bytes()
    assert head.token not in done.stdout + done.stderr
    assert not [p for p in store.rglob("*") if p.is_file() and head.token.encode() in p.read_bytes()]

    lacking = {series(name) for name in METRICS} - scrapes.names
    of_images = {series("rejects"), series("images")}
    assert lacking == of_images - scrapes.names, "no image was passed through a stage or rejected here"
    values = {
        name: {value for label, value in scrapes.labels if label == name} for name in ("stage", "state", "method", "p")
    }
    assert {"segmentation", "sweep"} <= values["stage"] <= {"classifier", "segmentation", "evaluation", "sweep"}
    assert values["state"] == {"waiting", "running", "done", "failed"}
    assert (values["method"], values["p"]) == ({"gradcam"}, {"0.5"})
    events = {path.parent.name.rsplit(" ", 1)[0] for path in store.glob("tensorboard/*/events.out.tfevents.*")}
    assert events >= {f"gradcam p=0.5 init=chexpert weak_n=8 trial={trial}" for trial in (0, 1)}
    runs = head.get("/api/train/v2/runs/v1")
    assert isinstance(runs, dict)
    assert any(run["name"].startswith("classifier-") for run in runs["train_runs"])


def read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def test_a_jobs_exit_code_is_the_studys(head: Head, tmp_path: Path) -> None:
    bad = head.submit(str(TINY), f"store.root={tmp_path}", "sweep.p=[1.2]")
    assert bad.returncode == 1, "the command line has one code for every failure"
    assert head.job(submission_of(bad))["driver_exit_code"] == 2
    assert "error: " in bad.stdout
    assert "sweep.p.0" in bad.stdout
    packages = list(Path(head.env["RAY_TMPDIR"]).glob("ray/session_2*/runtime_resources/working_dir_files/_ray_pkg_*/"))
    assert packages
    for package in packages:
        uploaded = {path.name for path in package.iterdir()}
        assert {"jobs", "configs", "chexseg_ray"} <= uploaded
        assert not uploaded & {"tests", "docs", "benchmarks", ".git", ".venv", ".ci"}
        assert "evidence.yaml" in {path.name for path in (package / "configs").iterdir()}, "a study that a job may name"


def without_token(head: Head, folder: Path) -> dict[str, str]:
    """An environment whose RAY_ADDRESS is the head's, and which knows no token."""
    env = {k: v for k, v in head.env.items() if not k.startswith("RAY_AUTH")}
    return env | {"RAY_AUTH_MODE": "disabled", "HOME": str(folder)}


@pytest.mark.slow
def test_a_driver_without_the_token_is_told_which_variables_to_set(head: Head, tmp_path: Path) -> None:
    env = without_token(head, tmp_path) | {"RAY_ADDRESS": f"127.0.0.1:{head.port}"}
    command = [sys.executable, "jobs/sweep.py", str(TINY), f"store.root={tmp_path}"]
    done = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 75, done.stdout + done.stderr
    assert "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH" in done.stderr.splitlines()[-1]


def test_the_jobs_api_runs_nothing_without_the_token_and_says_what_to_set(head: Head, tmp_path: Path) -> None:
    """What `ray job submit` says is Ray's own; whoever asks the API itself gets 401 and no job."""
    for method, path in (("GET", "/api/jobs/"), ("POST", "/api/jobs/"), ("POST", "/api/jobs/x/stop")):
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            body = json.dumps({"entrypoint": f"touch {tmp_path}/ran"}).encode() if method == "POST" else None
            request = urllib.request.Request(f"{head.address}{path}", body, headers, method=method)
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=20)
            assert caught.value.code in (401, 403)
            caught.value.close()
    before = head.get("/api/jobs/")
    command = ["ray", "job", "submit", "--address", head.address, "--", "touch", f"{tmp_path}/ran"]
    done = subprocess.run(
        command, env=without_token(head, tmp_path), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    assert "RAY_AUTH_MODE" in done.stdout + done.stderr
    assert "RAY_AUTH_TOKEN_PATH" in done.stdout + done.stderr
    assert head.get("/api/jobs/") == before
    assert not (tmp_path / "ran").exists()


def listening(pids: list[int], of: int) -> set[str]:
    """The hexadecimal local addresses of the listening TCP sockets of some processes, in the network of one of them."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link))
            except OSError:
                continue
    rows = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/{of}/net/{name}").read_text().splitlines()[1:]
    ]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


def with_a_network_card() -> list[str]:
    """What runs a command where there is a network card beside the loopback, of a network that leads nowhere."""
    steps = (
        "ip link set lo up",
        "ip link add c0 type veth peer name c1",
        "ip addr add 10.9.9.9/24 dev c0",
        "ip link set c0 up",
        "ip link set c1 up",
        "ip route add default via 10.9.9.1",
        'exec "$@"',
    )
    command = ["unshare", "-n", "sh", "-c", " && ".join(steps), "sh"]
    try:
        works = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        works = False
    return command if works else []


@pytest.mark.parametrize("closed", [True, False])
def test_a_study_of_its_own_listens_on_loopback_alone(closed: bool, head: Head) -> None:
    """And without its setting it would not: on a machine with a network card Ray listens there."""
    script = """
import os, sys, time
if len(sys.argv) > 1:
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = sys.argv[1]
from chexseg_ray.cluster.session import RaySession
RaySession(dashboard=True, num_cpus=1).start()
import ray
ray.get(ray.remote(lambda: 1).remote())
print("ready", flush=True)
time.sleep(60)
"""
    card = with_a_network_card()
    if not closed and not card:
        pytest.skip("no right to make a network card")
    folder = tempfile.mkdtemp(prefix="cx")
    env = {k: v for k, v in head.env.items() if not k.startswith("RAY_")} | {"RAY_TMPDIR": folder, "HOME": folder}
    command = [*card, sys.executable, "-c", script, *([] if closed else ["1"])]
    process = subprocess.Popen(
        command, env=env, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert any(line == "ready\n" for line in process.stdout)
    found = listening(marked(f"RAY_TMPDIR={folder}"), process.pid)
    process.send_signal(signal.SIGTERM)
    process.wait(90)
    assert found
    assert (found <= LOOPBACK) == closed
    shutil.rmtree(folder, ignore_errors=True)


def test_the_head_of_the_readme_listens_on_loopback_alone(head: Head) -> None:
    assert listening(head.processes(), head.process.pid) <= LOOPBACK
