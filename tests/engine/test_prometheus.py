"""What a run exports, what the Grafana dashboard reads, and what a training writes for TensorBoard."""

import contextlib
import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from studies import REPOSITORY

from chexseg_ray.engine import prometheus as metrics
from chexseg_ray.engine.prometheus import METRICS
from chexseg_ray.engine.telemetry import Telemetry, event_file, folder_name
from chexseg_ray.store.step import Step
from chexseg_ray.store.store import Store

DASHBOARD = REPOSITORY / "configs" / "grafana" / "chexseg_ray.json"
TAGS = {"stage", "state", "method", "p"}


def exported(name: str) -> set[str]:
    """The Prometheus names of a metric."""
    kind = METRICS[name].kind
    endings = ["_total"] if kind == "counter" else [""] if kind == "gauge" else ["_bucket", "_count", "_sum"]
    return {f"ray_chexseg_{name}{ending}" for ending in endings}


def test_no_metric_is_tagged_with_an_id() -> None:
    assert all(set(metric.tags) <= TAGS for metric in METRICS.values())


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    board = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    expressions += [
        variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"
    ]
    shown = {name for text in expressions for name in re.findall(r"ray_\w+", text)}
    assert shown <= {series for name in METRICS for series in exported(name)}
    assert all(shown & exported(name) for name in METRICS), "each one has a panel"
    for text in expressions:
        for names in re.findall(r"by \(([^)]*)\)", text):
            assert {n.strip() for n in names.split(",")} <= TAGS | {"le"}, text


def test_nothing_is_recorded_where_no_ray_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_ray_runs", lambda: False)
    monkeypatch.setattr(metrics, "_instrument", lambda name: pytest.fail("an instrument was made"))
    metrics.record("images", 3, stage="cams")


def test_a_gauge_is_set_again_until_it_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray drops one that nobody sets for 20 s; a trial may take hours between two validations."""
    seen: list[tuple[float, dict[str, str]]] = []

    class Gauge:
        def set(self, value: float, tags: dict[str, str]) -> None:
            seen.append((value, tags))

    monkeypatch.setattr(metrics, "_held", {})
    monkeypatch.setattr(metrics, "_AGAIN", 0.01)
    monkeypatch.setattr(metrics, "_ray_runs", lambda: True)
    monkeypatch.setattr(metrics, "_instrument", lambda name: Gauge())
    threading.Thread(target=metrics._refresh, daemon=True).start()
    metrics.record("trials", 3, state="running")
    metrics.record("validation_miou", 0.5, method="gradcam", p="0.9")
    deadline = time.monotonic() + 20
    while len([value for value, _ in seen if value == 3]) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    metrics.forget("trials", state="running")
    time.sleep(0.05)
    seen.clear()
    time.sleep(0.1)
    assert all(tags == {"method": "gradcam", "p": "0.9"} for _, tags in seen), "only what was asked for is forgotten"
    assert seen
    metrics.forget("validation_miou")


def test_a_wrong_tag_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="images"):
        metrics.record("images", 3, trial="0")


@pytest.mark.ray
def test_every_metric_reaches_a_metrics_port(private_ray: Callable[[], None]) -> None:
    private_ray()
    import ray

    for name, metric in METRICS.items():
        metrics.record(name, 2.0, **dict.fromkeys(metric.tags, "something"))
    port = ray.nodes()[0]["MetricsExportPort"]
    wanted = {next(iter(sorted(exported(name)))) for name in METRICS}
    deadline = time.monotonic() + 180
    found: set[str] = set()
    while not wanted <= found:
        assert time.monotonic() < deadline, wanted - found
        time.sleep(1)
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer,
        ):
            found |= set(re.findall(r"^(ray_chexseg_\w+)", answer.read().decode(), re.M))


def scalars(data: bytes) -> dict[str, tuple[int, float]]:
    """{tag: (step, value)} of an event file: records of length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found, place = {}, 0
    while place < len(data):
        length = int.from_bytes(data[place : place + 8], "little")
        event = Event.FromString(data[place + 12 : place + 12 + length])
        found.update({value.tag: (event.step, value.simple_value) for value in event.summary.value})
        place += 16 + length
    return found


def test_an_event_file_holds_the_history_entry() -> None:
    found = scalars(event_file({"loss": 0.5, "validation_miou": 0.25}, 12))
    assert found == {"loss": (12, 0.5), "validation_miou": (12, 0.25)}


def test_a_run_of_a_long_name_has_a_folder_that_a_disk_can_hold() -> None:
    runs = [f"irnet p=0.9 init=/{'very/long/' * 40}weights.pt trial={trial} 0123456789ab" for trial in (0, 1)]
    assert len({folder_name(run) for run in runs}) == 2
    assert all(len(folder_name(run)) <= 200 for run in runs)


def test_a_training_writes_one_event_file_an_entry_and_rank_0_alone(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    run = "irnet p=0.9 init=s3://somewhere/weights.pt trial=0"
    for shows, update in ((True, 6), (False, 9), (True, 12), (True, 12)):
        Telemetry(store, run, "segmentation", 12, 0, shows).recorded({"update": update, "loss": 1.0 / update})
    (folder,) = (tmp_path / "tensorboard").iterdir()
    assert folder.name == folder_name(run) == "irnet p=0.9 init=s3___somewhere_weights.pt trial=0"
    files = sorted(folder.iterdir())
    assert [scalars(file.read_bytes())["loss"][0] for file in files] == [6, 12], (
        "an entry that is written again replaces itself"
    )
    assert Store.open(str(tmp_path)).find(Step("tensorboard", 1, {})) is None
