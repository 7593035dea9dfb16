"""2,000 trials one after another: no process grows, and nothing is left."""

import os
from pathlib import Path

import pytest
from slow.chaos import own_environment, sweep_command
from slow.soak import TINY_TRIALS, Soak
from studies import TINY

TRIALS = int(os.environ.get("CHEXSEG_SOAK_TRIALS", "2000"))
MOST_GROWTH = {"driver": 25.0, "trials' process": 15.0, "raylet": 15.0}  # MB per 1,000 trials


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_thousand_trials_leave_nothing_and_no_process_grows(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    overrides = [*TINY_TRIALS, "data.image_size=32", f"sweep.trials={TRIALS}", f"store.root={store}"]
    with own_environment() as env:
        soak = Soak(sweep_command(TINY, *overrides), env, store)
        code = soak.run(every=2.0)
        with capfd.disabled():
            print(f"\nsoak ({os.cpu_count()} CPUs)", *soak.lines(), sep="\n")
    assert code == 0, soak.errors
    assert soak.errors == ""
    assert soak.trials == TRIALS
    assert soak.left == []
    assert max(soak.most_actors()) < 12, "processes of trials are used again"
    for role, most in MOST_GROWTH.items():
        assert soak.slopes(role, "own"), role
        assert max(soak.slopes(role, "own")) < most, role
        assert max(soak.slopes(role, "files")) < 5, role
        assert max(soak.slopes(role, "threads")) < 5, role
        assert max(soak.slopes(role, "shared")) < 5, role
