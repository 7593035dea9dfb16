"""What a run exports to Prometheus, through ray.util.metrics, on the metrics port of every node; nothing without Ray.

A name here is `ray_chexseg_<name>` there, and `_total` follows the names of counters. No id is ever a tag: a series
belongs to one of a few stages, states or settings, however many images and trials there are. Ray drops a gauge that
nobody has set for some 20 seconds, so the gauges here are set again until they are forgotten.
"""

import sys
import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

_AGAIN = 5.0  # seconds after which every gauge is set again
_held: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}  # the gauges: (name, tags): value
_BOUNDARIES = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]  # seconds


@dataclass(frozen=True)
class Metric:
    """One family of series: its kind, its help text, the names of its tags."""

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    tags: tuple[str, ...] = ()


METRICS = {
    "images": Metric("counter", "Images that a stage has passed through", ("stage",)),
    "rejects": Metric("counter", "Images that a stage could not use", ("stage",)),
    "stage_seconds": Metric("counter", "Seconds that the steps of a stage took", ("stage",)),
    "trials": Metric("gauge", "Trials of the sweep by state: waiting, running, done, failed", ("state",)),
    "updates": Metric("counter", "Optimiser updates of a stage's trainings", ("stage",)),
    "updates_per_second": Metric(
        "gauge", "Updates per second of a running training, since its last report", ("stage",)
    ),
    "validation_miou": Metric("gauge", "Validation mean IoU, the newest of the setting's trials", ("method", "p")),
    "checkpoint_seconds": Metric("histogram", "Seconds that saving a training state took", ("stage",)),
    "seconds_left": Metric("gauge", "Estimated seconds until the running stage or the sweep is done", ("stage",)),
}


def record(name: str, value: float, **tags: str) -> None:
    """Add to a counter, set a gauge, or observe a value of a histogram; do nothing where Ray does not run.

    Args:
        name: one of METRICS.
        value: a counter's step (not negative), a gauge's value, or seconds.
        **tags: a text for each tag of the metric, and no other.
    """
    metric = METRICS[name]
    assert tags.keys() == set(metric.tags), f"{name}: {sorted(tags)}"
    if not _ray_runs():
        return
    instrument = _instrument(name)
    if metric.kind == "counter":
        if value > 0:
            instrument.inc(value, tags)
    elif metric.kind == "gauge":
        instrument.set(value, tags)
        _held[name, frozenset(tags.items())] = value
        _start_refreshing()
    else:
        instrument.observe(value, tags)


def forget(name: str, **tags: str) -> None:
    """Stop to set gauges whose work is over; Prometheus then loses them.

    Args:
        name: one of METRICS.
        **tags: the gauges that have these tags, whatever their others; without any, all gauges of the name.
    """
    over = [key for key in _held if key[0] == name and set(tags.items()) <= key[1]]
    for key in over:
        _held.pop(key, None)


@cache
def _start_refreshing() -> threading.Thread:
    """Start, at the first call in this process, the thread that sets its gauges again."""
    thread = threading.Thread(target=_refresh, daemon=True)
    thread.start()
    return thread


def _refresh() -> None:
    """Set every gauge again and again, without end."""
    while True:
        time.sleep(_AGAIN)
        for (name, tags), value in list(_held.items()):
            if _ray_runs():
                _instrument(name).set(value, dict(tags))


def _ray_runs() -> bool:
    """Whether Ray runs in this process; does not import it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@cache
def _instrument(name: str) -> Any:
    """Ray's counter, gauge or histogram of a name, made once per process."""
    from ray.util.metrics import Counter, Gauge, Histogram

    metric = METRICS[name]
    if metric.kind == "histogram":
        return Histogram(f"chexseg_{name}", metric.text, boundaries=_BOUNDARIES, tag_keys=metric.tags)
    return {"counter": Counter, "gauge": Gauge}[metric.kind](f"chexseg_{name}", metric.text, tag_keys=metric.tags)
