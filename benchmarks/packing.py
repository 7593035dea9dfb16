"""How full a sweep keeps its GPUs: 40 sleeping trials of three lengths that ask for 1, 0.5 and 0.25 GPUs, on two pretended ones.

    python benchmarks/packing.py        (starts a local Ray of 8 CPUs; on a shared network in a network namespace, as .ci/run does)

Prints the GPU-seconds held against those there were, the most held at once, and how long before the end both GPUs were last full.
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

from chexseg_ray.stages.execution import TrainResources
from chexseg_ray.trials import fit_trials

GPUS = 2
KINDS = {"large": (8, 6.0, 1.0), "middle": (8, 2.0, 0.5), "small": (24, 0.7, 0.25)}  # number, seconds, GPUs


def sleeper(space: Mapping[str, Any], folder: Path) -> None:
    """A trial that writes down when it began and ended."""
    from ray import tune

    label = space["point"]
    start = time.time()
    time.sleep(KINDS[label.split("-")[0]][1])
    (folder / label).write_text(json.dumps([start, time.time()]))
    tune.report({"built": True})


def main() -> None:
    """Run and print."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0"}
    import ray

    print(describe())
    ray.init(address="local", num_cpus=8, num_gpus=GPUS, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
    resources = {f"{kind}-{i}": TrainResources(0, 1, gpus, 1) for kind, (count, _, gpus) in KINDS.items() for i in range(count)}
    with tempfile.TemporaryDirectory() as folder:
        fit_trials(partial(sleeper, folder=Path(folder)), resources, 0, f"{folder}/tune", lambda label, state: None)
        spans = {label: json.loads((Path(folder) / label).read_text()) for label in resources}
    begin, end = min(start for start, _ in spans.values()), max(stop for _, stop in spans.values())
    changes = [(start, resources[label].num_gpus) for label, (start, _) in spans.items()]
    changes += [(stop, -resources[label].num_gpus) for label, (_, stop) in spans.items()]
    held, most, busy, last, full_until = 0.0, 0.0, 0.0, begin, begin
    for at, change in sorted(changes):
        busy += held * (at - last)
        full_until = at if held == GPUS else full_until
        held, last = held + change, at
        most = max(most, held)
    order = sorted(spans, key=lambda label: spans[label][0])
    print(f"first started: {', '.join(order[:10])}")
    print(f"held {busy:.1f} of {GPUS * (end - begin):.1f} GPU-seconds, at most {most:g} GPUs; all full until {end - full_until:.1f} s before the end")
    ray.shutdown()


if __name__ == "__main__":
    main()
