"""What one training exports while it runs: metrics for Prometheus, and its history as TensorBoard events in the store.

Only rank 0 exports. `tensorboard --logdir {store.root}/tensorboard` reads the events: one folder per training, one file
per entry of its history. So a training that continues from a saved state writes the same files again, and nothing is
ever appended to a file, which an object store could not do.
"""

import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from chexseg_ray.engine import prometheus as metrics
from chexseg_ray.errors import TransientError
from chexseg_ray.progress import say
from chexseg_ray.store.store import Store

_SECONDS = 5.0  # between two exports of counts and rates


class Telemetry:
    """The exports of one training, which never end it.

    Args:
        store: takes the TensorBoard events.
        run: the training's name.
        stage: the kind of step that it makes.
        total: number of updates of the whole training.
        update: number of updates done when it begins, which is not 0 when it continues from a saved state.
        shows: whether this process exports.
    """

    def __init__(self, store: Store, run: str, stage: str, total: int, update: int, shows: bool) -> None:
        self._store, self._folder = store, f"tensorboard/{folder_name(run)}"
        self._stage, self._shows = stage, shows
        self._total, self._update, self._time = total, update, time.monotonic()
        self._lost = False  # whether events could not be written

    def updated(self, update: int) -> None:
        """Call this after every update; counts and rates are exported every few seconds and after the last update.

        Args:
            update: number of updates done.
        """
        now = time.monotonic()
        if not self._shows or (now - self._time < _SECONDS and update < self._total):
            return
        done = update - self._update
        rate = done / max(now - self._time, 1e-9)
        metrics.record("updates", done, stage=self._stage)
        metrics.record("updates_per_second", rate if update < self._total else 0.0, stage=self._stage)
        if self._stage != "segmentation":  # the sweep exports an estimate for all of its trials
            metrics.record("seconds_left", (self._total - update) / max(rate, 1e-9), stage=self._stage)
        self._update, self._time = update, now
        if update >= self._total:
            for name in ("updates_per_second", "seconds_left"):
                metrics.forget(name, stage=self._stage)
            metrics.forget("validation_miou")

    def recorded(self, entry: Mapping[str, float], point: tuple[str, float] | None = None) -> None:
        """Call this after every new entry of the history.

        Args:
            entry: {update, loss, ...}.
            point: (method, p) of a sweep point; None elsewhere.
        """
        if not self._shows:
            return
        if point is not None and "validation_miou" in entry:
            metrics.record("validation_miou", entry["validation_miou"], method=point[0], p=f"{point[1]:g}")
        update = int(entry["update"])
        try:
            data = event_file({name: value for name, value in entry.items() if name != "update"}, update)
            self._store.put(f"{self._folder}/events.out.tfevents.{update:010d}.chexseg_ray", data)
        except (OSError, TransientError) as error:  # a full /dev/shm, temporary folder or store: the training goes on
            if not self._lost:
                say(f"note: no TensorBoard events for {self._folder.split('/')[1]} ({error})")
            self._lost = True


def folder_name(run: str) -> str:
    """Turn a run's name into the name of a folder.

    Args:
        run: the name; its last 49 characters tell runs apart.

    Returns:
        At most 200 characters, without those that separate folders or mean something to a shell.
    """
    name = re.sub(r"[^A-Za-z0-9 ._=,+-]", "_", run)
    return name if len(name) <= 200 else f"{name[:150]}_{name[-49:]}"


def event_file(values: Mapping[str, float], update: int) -> bytes:
    """The bytes of a TensorBoard event file.

    Args:
        values: scalars by tag.
        update: the step that all of them belong to.
    """
    from tensorboardX import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        writer = SummaryWriter(folder)
        for name, value in values.items():
            writer.add_scalar(name, value, update)
        writer.close()
        (file,) = Path(folder).iterdir()
        return file.read_bytes()
