"""Configs of reports, and ways to read what a report wrote."""

import csv
import io
from pathlib import Path

from studies import tiny

from chexseg_ray.config.schema import StudyConfig

GRID = (
    "sweep.p=[0.0, 0.5, 0.9, 1.0]",
    "sweep.method=[gradcam, irnet]",
    "sweep.trials=3",
    "report.bootstrap_replicates=200",
)


CONTRASTS = (
    "report.contrasts=[{p: [0.9, 0.0]}, {p: [0.9, 1.0]}, {method: [irnet, gradcam], p: 0.0}, {init: [moco, chexpert]}]"
)


def config_of(store: Path, *more: str) -> StudyConfig:
    return tiny(store, *GRID, CONTRASTS, *more)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as stream:
        return list(csv.DictReader(stream))


def table(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text())))


def html(store: Path) -> str:
    return (store / "report" / "tiny" / "index.html").read_text()
