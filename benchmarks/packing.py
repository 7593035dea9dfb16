"""How full a sweep keeps its GPUs: 40 trials of three lengths that only sleep, on two GPUs that Ray is told of.

    python benchmarks/packing.py

Measures the packing of trials that ask for 1, 0.5 and 0.25 GPUs (KINDS) by the code that runs a sweep's trials. Needs
no GPU. Starts a local Ray of 8 CPUs; on a shared network, call it in a network namespace, as .ci/run does. Prints the
machine; which trials started first; the GPU-seconds that trials held against those that the two GPUs offered until
the last trial ended, the most GPUs held at once, and how long before the end both were last full.
"""

import json
import os
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from machine import describe

from chexseg_ray.config.resources import WorkerCompute
from chexseg_ray.sweep.trials import fit_trials

GPUS = 2
KINDS = {"large": (8, 6.0, 1.0), "middle": (8, 2.0, 0.5), "small": (24, 0.7, 0.25)}  # trials, seconds, GPUs of each


def sleeper(space: Mapping[str, Any], folder: Path) -> None:
    """Run one trial: sleep as long as its kind takes, and write when it began and ended.

    Args:
        space: Tune's {"point": label}; the label begins with the kind.
        folder: where the file of that label goes.
    """
    from ray import tune

    label = space["point"]
    start = time.time()
    time.sleep(KINDS[label.split("-")[0]][1])
    (folder / label).write_text(json.dumps([start, time.time()]))
    tune.report({"built": True})


def main() -> None:
    """Run all trials and print how full the GPUs were."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0"}
    import ray

    print(describe())
    ray.init(
        address="local",
        num_cpus=8,
        num_gpus=GPUS,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        log_to_driver=False,
    )
    resources: dict[str, WorkerCompute] = {}
    for kind, (count, _, gpus) in KINDS.items():
        resources |= {f"{kind}-{number}": WorkerCompute(num_gpus=gpus) for number in range(count)}
    with tempfile.TemporaryDirectory() as folder:
        fit_trials(partial(sleeper, folder=Path(folder)), resources, 0, f"{folder}/tune", lambda label, state: None)
        spans = {label: json.loads((Path(folder) / label).read_text()) for label in resources}
    begin = min(start for start, _ in spans.values())
    end = max(stop for _, stop in spans.values())
    changes = [(start, resources[label].num_gpus) for label, (start, _) in spans.items()]
    changes += [(stop, -resources[label].num_gpus) for label, (_, stop) in spans.items()]
    held, most, busy, last, full_until = 0.0, 0.0, 0.0, begin, begin
    for at, change in sorted(changes):
        busy += held * (at - last)
        if held == GPUS:
            full_until = at
        held, last = held + change, at
        most = max(most, held)
    order = sorted(spans, key=lambda label: spans[label][0])
    print(f"first started: {', '.join(order[:10])}")
    held_text = f"held {busy:.1f} of {GPUS * (end - begin):.1f} GPU-seconds, at most {most:g} GPUs"
    print(f"{held_text}; all full until {end - full_until:.1f} s before the end")
    ray.shutdown()


if __name__ == "__main__":
    main()
