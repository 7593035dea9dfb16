"""Telemetry that cannot be written never ends a training (faults.md 25)."""

import tempfile
from pathlib import Path

import pytest

from chexseg_ray.engine.telemetry import Telemetry
from chexseg_ray.store.store import Store


@pytest.mark.parametrize("place", ["store", "temporary folder"])
def test_events_that_cannot_be_written_are_one_note(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if place == "store":
        (tmp_path / "tensorboard").write_text("in the way")
    else:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "is not there"))
    telemetry = Telemetry(Store.open(str(tmp_path)), "gradcam 0", "segmentation", 12, 0, shows=True)
    for update in (6, 12):
        telemetry.recorded({"update": update, "loss": 0.5})
    said = capsys.readouterr().out
    assert said.startswith("note: no TensorBoard events for gradcam 0 (")
    assert said.count("\n") == 1, "said once"


def test_a_bug_in_the_events_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chexseg_ray.engine.telemetry.event_file", lambda *_: 1 / 0)
    telemetry = Telemetry(Store.open(str(tmp_path)), "x", "segmentation", 9, 0, shows=True)
    with pytest.raises(ZeroDivisionError):
        telemetry.recorded({"update": 3, "loss": 0.5})
