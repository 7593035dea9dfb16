"""Telemetry never ends a training."""

import tempfile
from pathlib import Path

import pytest

from chexseg_ray.engine import telemetry
from chexseg_ray.engine.telemetry import Telemetry
from chexseg_ray.errors import TransientError
from chexseg_ray.store.store import Store

ENTRY = {"update": 3, "loss": 0.5}


def full(*_: object, **__: object) -> bytes:
    raise OSError(28, "No space left on device")


def refused(*_: object) -> None:
    raise TransientError("the store: cannot be written")


@pytest.mark.parametrize("what", ["shared memory or temporary folder", "store"])
def test_events_that_cannot_be_written_are_a_note_and_the_training_goes_on(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if what == "store":
        monkeypatch.setattr(Store, "put", refused)
    else:
        monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    exports = Telemetry(Store.open(str(tmp_path)), "irnet p=0.5", "segmentation", total=9, update=0, shows=True)
    for _ in range(3):
        exports.recorded(ENTRY)
    assert capsys.readouterr().out.count("note: no TensorBoard events for irnet p=0.5 (") == 1


def test_a_bug_in_the_events_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "event_file", lambda *_: 1 / 0)
    exports = Telemetry(Store.open(str(tmp_path)), "x", "segmentation", total=9, update=0, shows=True)
    with pytest.raises(ZeroDivisionError):
        exports.recorded(ENTRY)
