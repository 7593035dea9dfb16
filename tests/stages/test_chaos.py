"""Two kills while the trials of a study run; tests/slow/test_chaos.py has twenty, at any moment of a study."""

import shutil
from pathlib import Path

import pytest
from slow.chaos import Chaos, Moment, check, counting, own_environment, sweep_command
from studies import TINY

pytestmark = pytest.mark.ray


def test_a_sweep_whose_trial_and_raylet_are_killed_ends_byte_equal(tiny_store: Path, tmp_path: Path) -> None:
    begin = Path(shutil.copytree(tiny_store, tmp_path / "begin"))
    for name in ("segmentation", "evaluation", "prediction", "report"):
        shutil.rmtree(begin / name)
    with own_environment(**counting()) as env:
        chaos = Chaos(sweep_command(TINY, "compute.state_seconds=0"), env, tmp_path, begin, stores=[tiny_store])
        chaos.run([Moment("actor", 0.1), Moment("raylet", 2.0)])
        assert chaos.exits == {0: 1, 75: 1}
        check(chaos)
