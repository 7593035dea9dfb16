"""Two studies on one store at once (faults.md 27)."""

import os
import re
from pathlib import Path

import pytest
from studies import TINY

from chexseg_ray.cluster.claims import claim
from chexseg_ray.store.store import Store
from chexseg_ray.sweep.job import main


def test_a_study_whose_store_is_held_ends_with_75_and_builds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("chexseg_ray.sweep.run.prepare", lambda *_: pytest.fail("builds, beside another driver"))
    with claim(Store.open(str(tmp_path))):
        assert main([str(TINY), f"store.root={tmp_path}"]) == 75
        error = capsys.readouterr().err
        assert re.match(rf"error: {tmp_path}: in use by process {os.getpid()} on \S+ since \S+: wait for it", error)
        assert error.count("\n") == 1, "nothing is built, so nothing is kept"
    assert os.listdir(tmp_path) == [".claim"]
