"""Processes of a study that are killed at any moment: the same command again ends with the same bytes."""

import os
from pathlib import Path

import pytest
from slow.chaos import Chaos, check, counting, moments, orphan_attempts, own_environment, sweep_command
from studies import TINY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

SEED = int(os.environ.get("CHEXSEG_SEED", "0"))
KILLS = int(os.environ.get("CHEXSEG_KILLS", "20"))
# a worker group, and actors for CAMs and predictions, so that all kinds of process exist
ALL_KINDS = [
    "compute.state_seconds=1",
    "compute.classifier={num_workers: 1, num_cpus: 1, threads: 1}",
    "compute.cams={max_actors: 1}",
    "compute.prediction={max_actors: 1}",
]


def test_a_study_killed_at_twenty_moments_ends_byte_equal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with own_environment(**counting()) as env:
        chaos = Chaos(sweep_command(TINY, *ALL_KINDS), env, tmp_path)
        chaos.run(moments(SEED, KILLS, chaos.undisturbed()))
        orphans = [orphan_attempts(store) for store in chaos.stores[1:]]
        left = f"{sum(n for n, _ in orphans)} attempts of killed runs, {sum(b for _, b in orphans) / 1e6:.1f} MB"
        with capfd.disabled():
            print(f"\nchaos, seed {SEED} ({os.cpu_count()} CPUs)", *chaos.lines(), sep="\n")
            print(f"left in the stores: {left}")
        check(chaos)
