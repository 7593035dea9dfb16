"""How trials are packed: several in a slot by fraction, the first named first, none left waiting."""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chexseg_ray.config.resources import WorkerCompute
from chexseg_ray.sweep.trials import _trial_states, fit_trials


def sleeper(space: Mapping[str, Any], folder: Path, seconds: Mapping[str, float]) -> None:
    """A trial that writes down when it began and ended."""
    from ray import tune

    label = space["point"]
    start = time.time()
    (folder / f"{label}.began").touch()
    while label.startswith("small") and len(list(folder.glob("small*.began"))) < 4 and time.time() < start + 60:
        time.sleep(0.05)  # four must be there together, however slowly they start
    time.sleep(seconds[label])
    (folder / f"{label}.json").write_text(json.dumps([start, time.time()]))
    tune.report({"built": True})


@pytest.mark.ray
def test_trials_of_mixed_size_fill_the_slots_longest_first_without_a_deadlock(
    tmp_path: Path, private_ray: Callable[[], None]
) -> None:
    private_ray()  # four CPUs
    large, small = [f"large{i}" for i in range(3)], [f"small{i:02d}" for i in range(12)]
    seconds = dict.fromkeys(large, 6.0) | dict.fromkeys(small, 1.5)
    resources = {label: WorkerCompute(num_cpus=2.0 if label in large else 0.5) for label in seconds}
    done: list[str] = []
    fit_trials(
        partial(sleeper, folder=tmp_path, seconds=seconds),
        resources,
        0,
        str(tmp_path / "tune"),
        lambda label, state: done.append(f"{label} {state}"),
    )
    spans = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert spans.keys() == seconds.keys() == {line.split()[0] for line in done if line.endswith(" done")}
    events = sorted(
        [(start, 1, label) for label, (start, _) in spans.items()]
        + [(end, -1, label) for label, (_, end) in spans.items()]
    )
    held, most, together = 0.0, 0.0, 0
    running: set[str] = set()
    for _, step, label in events:
        held += step * resources[label].num_cpus
        (running.add if step > 0 else running.remove)(label)
        most, together = max(most, held), max(together, len(running & set(small)))
    assert most <= 4.0, "never more than there is"
    assert together >= 4, "small trials share what a large one would hold"
    order = sorted(spans, key=lambda label: spans[label][0])
    assert set(order[:2]) == {"large0", "large1"}
    assert order.index("large2") < len(order) - 4, "a large trial does not wait until all small ones are through"


@pytest.mark.ray
def test_more_worker_groups_than_fit_wait_for_each_other(tmp_path: Path, private_ray: Callable[[], None]) -> None:
    private_ray()
    labels = [f"group{i}" for i in range(3)]
    resources = {label: WorkerCompute(num_workers=2, num_cpus=1.5) for label in labels}  # three CPUs each, of four
    work = partial(sleeper, folder=tmp_path, seconds=dict.fromkeys(labels, 0.5))
    fit_trials(work, resources, 0, str(tmp_path / "tune"), lambda label, state: None)
    spans = sorted(json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert len(spans) == 3
    assert all(later[0] >= earlier[1] for earlier, later in pairwise(spans)), "one at a time"


def stopper(space: Mapping[str, Any], folder: Path) -> None:
    """A trial whose storage fails, if it is not the first."""
    from ray import tune

    (folder / space["point"]).touch()
    tune.report({"built": True} if space["point"] == "0" else {"built": False, "stopped": f"{space['point']}: full"})


@pytest.mark.ray
def test_trials_are_no_longer_started_once_the_storage_has_failed_in_three(
    tmp_path: Path, private_ray: Callable[[], None]
) -> None:
    private_ray()
    resources = {str(i): WorkerCompute(num_cpus=4.0) for i in range(8)}  # one at a time
    states: list[str] = []
    (tmp_path / "began").mkdir()
    stopped = fit_trials(
        partial(stopper, folder=tmp_path / "began"),
        resources,
        0,
        str(tmp_path / "tune"),
        lambda label, state: states.append(f"{label} {state}"),
    )
    assert list(stopped.values())[:3] == ["1: full", "2: full", "3: full"]
    assert "0 done" in states
    assert "1 failed" in states
    assert len(list((tmp_path / "began").iterdir())) < 8


def killed(space: Mapping[str, Any], folder: Path) -> None:
    """A trial; the second is killed, as the system does for its memory."""
    from ray import tune

    (folder / f"{space['point']}.{len(list(folder.iterdir()))}").touch()
    if space["point"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    tune.report({"built": True})


@pytest.mark.ray
def test_a_trial_that_is_killed_starts_again_as_often_as_it_may_and_the_others_finish(
    tmp_path: Path, private_ray: Callable[[], None]
) -> None:
    private_ray()
    resources = {str(i): WorkerCompute(num_cpus=2.0) for i in range(4)}
    states: list[str] = []
    (tmp_path / "began").mkdir()
    work = partial(killed, folder=tmp_path / "began")
    stopped = fit_trials(
        work, resources, 1, str(tmp_path / "tune"), lambda label, state: states.append(f"{label} {state}")
    )
    assert stopped == {}
    assert {state for state in states if "running" not in state} == {"0 done", "1 failed", "2 done", "3 done"}
    assert len(list((tmp_path / "began").glob("1.*"))) == 2, "it may start once more"


@pytest.mark.ray
@pytest.mark.parametrize("end", ["on_trial_complete", "on_trial_error"])
def test_an_ended_trial_keeps_no_statistics_in_the_driver(end: str) -> None:
    from ray.tune.experiment import Trial

    trial = Trial("work", config={"point": "a"}, stub=True)
    for value in range(20):
        trial.run_metadata.update_metric("loss", float(value), step=value + 1)
    assert trial.metric_analysis
    states: list[str] = []
    getattr(_trial_states(lambda label, state: states.append(f"{label} {state}"), {}), end)(1, [trial], trial)
    assert states == ["a failed"]
    assert not trial.metric_analysis
    assert not trial.run_metadata.metric_n_steps
