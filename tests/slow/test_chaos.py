"""Processes of a study that are killed at any moment: the same command again ends with the same bytes."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slow.chaos import Chaos, half_written, made, moments, orphan_attempts, sweep_command
from studies import REPOSITORY, TINY

SEED = int(os.environ.get("CHEXSEG_SEED", "0"))
KILLS = int(os.environ.get("CHEXSEG_KILLS", "20"))
# a worker group, and actors for CAMs and predictions, so that all kinds of process exist
ALL_KINDS = [
    "compute.state_seconds=1",
    "compute.classifier={num_workers: 1, num_cpus: 1, threads: 1}",
    "compute.cams={max_actors: 1}",
    "compute.prediction={max_actors: 1}",
]


@pytest.fixture
def chaos_env() -> Iterator[dict[str, str]]:
    """An environment whose HOME and RAY_TMPDIR no other test has, and which counts steps and updates."""
    folder = tempfile.mkdtemp(prefix="cx")  # short: Ray's sockets lie below
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join((str(REPOSITORY), str(Path(__file__).parent / "counting")))
    yield env | {"HOME": folder, "RAY_TMPDIR": folder, "PYTHONPATH": path}
    shutil.rmtree(folder, ignore_errors=True)


def check(chaos: Chaos) -> None:
    """Nothing is lost, changed or left, and nothing but one error was printed."""
    expected = made(chaos.stores[0])
    for store in chaos.stores[1:]:
        found = made(store)
        assert found.keys() == expected.keys()
        assert [name for name in expected if found[name] != expected[name]] == []
        assert half_written(store) == []
    assert chaos.faults == []
    assert chaos.alive() == []
    assert chaos.repeated()["finished steps built again"] == 0


def show(chaos: Chaos, capfd: pytest.CaptureFixture[str], seed: int) -> None:
    orphans = [orphan_attempts(store) for store in chaos.stores[1:]]
    left = f"{sum(n for n, _ in orphans)} attempts of killed runs, {sum(b for _, b in orphans) / 1e6:.1f} MB"
    with capfd.disabled():
        print(f"\nchaos, seed {seed} ({os.cpu_count()} CPUs)", *chaos.lines(), f"left in the stores: {left}", sep="\n")


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_a_study_killed_at_twenty_moments_ends_byte_equal(
    chaos_env: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chaos = Chaos(sweep_command(TINY, *ALL_KINDS), chaos_env, tmp_path)
    chaos.run(moments(SEED, KILLS, chaos.undisturbed()))
    show(chaos, capfd, SEED)
    check(chaos)
