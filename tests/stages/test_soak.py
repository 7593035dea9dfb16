"""Sixty short trials one after another; tests/slow/test_soak.py has 2,000, and measures how processes grow."""

import shutil
from pathlib import Path

import pytest
from slow.chaos import own_environment, sweep_command
from slow.soak import TINY_TRIALS, Soak
from studies import TINY

pytestmark = pytest.mark.ray


def test_sixty_trials_leave_nothing(tiny_store: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    with own_environment() as env:
        soak = Soak(sweep_command(TINY, *TINY_TRIALS, "sweep.trials=60", f"store.root={store}"), env, store)
        assert soak.run(every=0.5) == 0, soak.errors
    assert (soak.trials, soak.errors, soak.left) == (60, "", [])
    assert max(soak.most_actors()) < 12, "processes of trials are used again"
    for role in ("driver", "trials' process", "raylet"):
        for what, most in (("files", 5), ("threads", 5)):  # from the first half to the end
            assert all(slope * 30 / 1000 < most for slope in soak.slopes(role, what)), (role, what)
