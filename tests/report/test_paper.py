"""The paper's own numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
from report.fakes import fill
from report.reports import table
from studies import REPOSITORY

from chexseg_ray.config.axes import SweepPoint
from chexseg_ray.config.parse import load_config
from chexseg_ray.report.page import write_report
from chexseg_ray.report.paper import table_1_value, table_2_value
from chexseg_ray.store.store import Store


@pytest.mark.usefixtures("undrawn")
def test_the_papers_own_numbers_stand_beside_a_run_of_the_papers_study(tmp_path: Path) -> None:
    overrides = [f"store.root={tmp_path}", "report.bootstrap_replicates=100", "data.root=/nowhere"]
    config = load_config(REPOSITORY / "configs" / "paper.yaml", overrides)
    write_report(config, fill(tmp_path, config), Store.open(str(tmp_path)))
    folder = tmp_path / "report" / config.report.name
    found = table(folder / "table1.csv")
    columns, mean = found[0], found[1]
    for p, value in (
        ("p = 0, 20000 weak", "0.142"),
        ("p = 0.85", "0.261"),
        ("p = 0.9", "0.270 ± 0.00872"),
        ("p = 1", "0.246 ± 0.01837"),
    ):
        name = next(c for c in columns if c.startswith(p) and c.endswith("paper"))
        assert mean[columns.index(name)] == value
    weak = table(folder / "table2.csv")
    irnet = next(row for row in weak if row[0] == "resnet18-CheXpert" and row[1] == "20000")
    assert irnet[weak[0].index("IRNet paper")] == "0.156 ± 0.00000"
    assert "the paper's own number" in (folder / "index.html").read_text()


def test_a_method_that_the_paper_does_not_have_gets_no_number_of_another_one() -> None:
    config = load_config(REPOSITORY / "configs" / "paper.yaml")
    cam = SweepPoint("gradcam", 0.9, "chexpert", 100, None, "deeplabv3plus", "resnet18")
    assert table_1_value(config, cam, "mean") == "0.270 ± 0.00872"
    assert table_1_value(config, replace(cam, method="irnet"), "mean") == "0.267 ± 0.00993"
    weak = replace(cam, p=0.0, weak_n=2000)
    assert table_2_value(config, weak) == "0.141 ± 0.00003"
    for point in (cam, weak, replace(cam, p=0.0, weak_n=20000)):
        other = replace(point, method="layercam")
        for pathology in ("mean", "Edema"):
            assert table_1_value(config, other, pathology) == ""
        assert table_2_value(config, other) == ""
