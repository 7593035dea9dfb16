"""A whole report, made once."""

from pathlib import Path

import pytest
from report.fakes import fill
from report.reports import config_of

from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.report.page import write_report
from chexseg_ray.store.store import Store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyConfig, Path]:
    store = tmp_path_factory.mktemp("report") / "store"
    config = config_of(store, "sweep.init=[random, chexpert]")
    study = fill(store, config, absent="Lung Lesion")
    write_report(config, study, Store.open(str(store)))
    return store, config, store / "report" / "tiny"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take a second a report; their data are made all the same."""
    monkeypatch.setattr("chexseg_ray.report.page.draw", lambda *_: {"png": b"", "svg": b""})
