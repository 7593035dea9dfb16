"""2,000 trials one after another: no process grows, and nothing is left."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slow.chaos import sweep_command
from slow.soak import TINY_TRIALS, Soak
from studies import REPOSITORY, TINY

TRIALS = int(os.environ.get("CHEXSEG_SOAK_TRIALS", "2000"))
MOST_GROWTH = {"driver": 60.0, "trials' process": 15.0, "raylet": 15.0}  # MB per 1,000 trials


@pytest.fixture
def soak_env() -> Iterator[dict[str, str]]:
    """An environment whose HOME, TMPDIR and RAY_TMPDIR no other test has."""
    folder = tempfile.mkdtemp(prefix="cx")  # short: Ray's sockets lie below
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for name in ("tmp", "ray"):
        Path(folder, name).mkdir()
    own = {"HOME": folder, "TMPDIR": f"{folder}/tmp", "RAY_TMPDIR": f"{folder}/ray", "PYTHONPATH": str(REPOSITORY)}
    yield env | own
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_thousand_trials_leave_nothing_and_no_process_grows(
    soak_env: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    overrides = [*TINY_TRIALS, "data.image_size=32", f"sweep.trials={TRIALS}", f"store.root={store}"]
    soak = Soak(sweep_command(TINY, *overrides), soak_env, store)
    code = soak.run(every=2.0)
    with capfd.disabled():
        print(f"\nsoak ({os.cpu_count()} CPUs)", *soak.lines(), sep="\n")
    assert code == 0, soak.errors
    assert soak.errors == ""
    assert soak.trials == TRIALS
    assert soak.left == []
    assert soak.most_actors()[1] <= soak.most_actors()[0]
    for role, most in MOST_GROWTH.items():
        assert soak.slopes(role, "own"), role
        assert max(soak.slopes(role, "own")) < most, role
        assert max(soak.slopes(role, "files")) < 2, role
        assert max(soak.slopes(role, "threads")) < 2, role
        assert max(soak.slopes(role, "shared")) < 5, role
