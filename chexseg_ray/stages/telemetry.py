"""What one training shows while it runs: metrics for Prometheus, and its history as TensorBoard events in the store. Rank 0 alone shows.

`tensorboard --logdir {store.root}/tensorboard` reads them: a folder a training, a file an entry of its history, so that a training that goes
on from a state writes the same files again, and an object store needs no appending.
"""

import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from chexseg_ray.artifacts import Store
from chexseg_ray.stages import metrics

_SECONDS = 5.0  # between two looks at the clock's worth


class Telemetry:
    """Of one training of `total` updates, which begins at `update`."""

    def __init__(self, store: Store, run: str, stage: str, total: int, update: int, shows: bool) -> None:
        self._store, self._folder, self._stage, self._shows = store, f"tensorboard/{folder_name(run)}", stage, shows
        self._total, self._update, self._time = total, update, time.monotonic()

    def updated(self, update: int) -> None:
        """After every update; counts and rates go out now and then."""
        now = time.monotonic()
        if not self._shows or (now - self._time < _SECONDS and update < self._total):
            return
        done, rate = update - self._update, (update - self._update) / max(now - self._time, 1e-9)
        metrics.record("updates", done, stage=self._stage)
        metrics.record("updates_per_second", rate if update < self._total else 0.0, stage=self._stage)
        if self._stage != "segmentation":  # the sweep knows its own
            metrics.record("seconds_left", (self._total - update) / max(rate, 1e-9), stage=self._stage)
        self._update, self._time = update, now
        if update >= self._total:
            for name in ("updates_per_second", "seconds_left"):
                metrics.forget(name, stage=self._stage)
            metrics.forget("validation_miou")

    def recorded(self, entry: Mapping[str, float], point: tuple[str, float] | None = None) -> None:
        """After every entry of the history: {update, loss, ...}; of a sweep point also its (method, p)."""
        if not self._shows:
            return
        if point is not None and "validation_miou" in entry:
            metrics.record("validation_miou", entry["validation_miou"], method=point[0], p=f"{point[1]:g}")
        update = int(entry["update"])
        data = event_file({name: value for name, value in entry.items() if name != "update"}, update)
        self._store.put(f"{self._folder}/events.out.tfevents.{update:010d}.chexseg_ray", data)


def folder_name(run: str) -> str:
    """A run's name without what separates folders or means something to a shell, short enough for a file system; its end tells runs apart."""
    name = re.sub(r"[^A-Za-z0-9 ._=,+-]", "_", run)
    return name if len(name) <= 200 else f"{name[:150]}_{name[-49:]}"


def event_file(values: Mapping[str, float], update: int) -> bytes:
    """A TensorBoard event file of scalars at one update."""
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        for name, value in values.items():
            writer.add_scalar(name, value, update)
        writer.close()
        (file,) = Path(folder).iterdir()
        return file.read_bytes()
