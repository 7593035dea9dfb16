"""What went into a study."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from report.fakes import commit, fill
from report.reports import config_of, html, rows

from chexseg_ray.report.page import write_report
from chexseg_ray.store.store import Store


@pytest.mark.usefixtures("undrawn")
def test_the_overlap_of_weak_sets_is_that_of_the_subsets_drawn(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    study = fill(tmp_path, config, ids=12)
    write_report(config, study, Store.open(str(tmp_path)))
    from chexseg_ray.segmentation.mixing import weak_subset

    subsets = [set(weak_subset([f"w{i:02d}" for i in range(12)], 0, trial, 8)) for trial in range(3)]
    share = np.mean(
        [len(a & b) / 8 for a, b in ((subsets[0], subsets[1]), (subsets[0], subsets[2]), (subsets[1], subsets[2]))]
    )
    assert 0.3 < share < 1
    assert f"weak sets of 8 share {share:.0%} of their images" in html(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_drawn_expert_masks_are_conditions_of_their_own(tmp_path: Path) -> None:
    config = config_of(tmp_path, "sweep.num_expert=[4]", "sweep.p=[1.0]")
    study = fill(tmp_path, config)
    step = next(step for step in study.steps() if step.name == "images" and step.config["split"] == "expert_train")
    ids = [f"e{i:02d}" for i in range(6)]
    commit(Store.open(str(tmp_path)), step, {"images/part-00000.parquet": pa.table({"cxr_id": ids})}, {}, rows=6)
    positive = dict.fromkeys(config.data.pathologies, 3)
    facts = {"positive_masks": positive, "positive_labels": positive, "patients": 4}
    commit(Store.open(str(tmp_path)), step.inputs["manifest"], {}, facts)
    write_report(config, study, Store.open(str(tmp_path)))
    from chexseg_ray.segmentation.mixing import expert_subset

    a, b, c = (set(expert_subset(ids, 0, trial, 4)) for trial in range(3))
    share = np.mean([len(a & b), len(a & c), len(b & c)]) / 4
    assert f"wo trials&#39; 4 expert masks share {share:.0%}" in html(tmp_path)
    given = {r["given"] for r in rows(tmp_path / "report" / "tiny") if r["interval"].startswith("trials,")}
    assert given == {"the test set, the pool of expert masks and shared models"}


@pytest.mark.usefixtures("undrawn")
def test_rejected_images_are_listed(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    study = fill(tmp_path, config)
    step = next(s for s in study.steps() if s.name == "images" and s.config["split"] == "weak")
    store = Store.open(str(tmp_path))
    rejects = pa.table({"cxr_id": ["a"], "path": ["train/a.jpg"], "stage": ["images"], "reason": ["undecodable"]})
    commit(store, step, {"rejects.parquet": rejects}, {}, rejects=1)
    positive = dict.fromkeys(config.data.pathologies, 3)
    commit(store, step.inputs["manifest"], {}, {"positive_masks": None, "positive_labels": positive, "patients": 4})
    write_report(config, study, store)
    assert "note on images" not in html(tmp_path)
    assert "train/a.jpg" in html(tmp_path)
    assert "undecodable" in html(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_images_with_hardly_any_grey_values_are_counted_and_named(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    study = fill(tmp_path, config)
    step = next(s for s in study.steps() if s.name == "images" and s.config["split"] == "weak")
    store = Store.open(str(tmp_path))
    commit(store, step, {}, {"notes": {"hardly any grey values": {"images": 12, "first": ["a1", "<b2>"]}}})
    write_report(config, study, store)
    row = '<td>12</td><td class="text">a1, &lt;b2&gt;</td>'
    assert f'<td class="text">weak</td><td class="text">hardly any grey values</td>{row}' in html(tmp_path)
