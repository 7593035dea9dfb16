"""The report against its store: every number recomputed, every link followed, whole, half and empty."""

import csv
import io
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from report.fakes import commit, counts_table, fill, graph, load
from scipy import stats
from studies import REPOSITORY, TINY, tiny

from chexseg_ray.artifacts import Store
from chexseg_ray.choice import choose
from chexseg_ray.config import StudyConfig
from chexseg_ray.report.figures import Figure, draw
from chexseg_ray.report.page import read_results, write_report
from chexseg_ray.report.paper_tables import init_name

GRID = ("sweep.p=[0.0, 0.5, 0.9, 1.0]", "sweep.method=[gradcam, irnet]", "sweep.trials=3", "report.bootstrap_replicates=200")
CONTRASTS = "report.contrasts=[{p: [0.9, 0.0]}, {p: [0.9, 1.0]}, {method: [irnet, gradcam], p: 0.0}, {init: [moco, chexpert]}]"


def config_of(store: Path, *more: str) -> StudyConfig:
    return tiny(store, *GRID, CONTRASTS, *more)


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


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as stream:
        return list(csv.DictReader(stream))


def table(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text())))


def test_intervals_over_trials_are_scipys_of_the_trials_rows(whole: tuple[Path, StudyConfig, Path]) -> None:
    found = rows(whole[2])
    key = ("method", "init", "p", "pathology", "aggregation")
    trials = [r for r in found if r["trial"] != "all"]
    checked = 0
    for row in found:
        if row["trial"] == "all" and row["interval"].startswith("trials,") and row["low"]:
            own = [float(t["iou"]) for t in trials if all(t[k] == row[k] for k in key)]
            low, high = stats.t.interval(0.95, 2, np.mean(own), stats.sem(own))
            assert float(row["low"]) == pytest.approx(max(low, 0), abs=1e-12)
            assert float(row["high"]) == pytest.approx(min(high, 1), abs=1e-12)
            checked += 1
    assert checked > 300


def test_every_interval_holds_its_mean_and_both_sources_add_up(whole: tuple[Path, StudyConfig, Path]) -> None:
    store, config, folder = whole
    own = [r for r in rows(folder) if r["trial"] == "all" and r["pathology"] == "mean" and r["aggregation"] == "pooled"]
    assert all(float(r["low"]) <= float(r["iou"]) <= float(r["high"]) for r in own)
    study, opened = graph(config), Store.open(str(store))
    results = read_results(config, study, opened, opened.find_all(study.steps()))
    assert results.test is not None
    for setting in results.settings:
        sums = [point.sums["pooled"] for point in setting.points]
        weights, shown = results.test.weights, sums[0].truth.sum(axis=0) > 0
        drawn = [(weights @ s.numerator[:, shown] / (weights @ s.denominator[:, shown])).mean(axis=1) for s in sums]
        values = [(s.numerator.sum(axis=0) / s.denominator.sum(axis=0))[shown].mean() for s in sums]
        parts = np.var(values, ddof=1) / 3, max(0.0, np.cov(drawn)[np.triu_indices(3, 1)].mean())
        assert setting.mean["pooled"].patients.n == 40
        half = stats.t.ppf(0.975, sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 39)) * sum(parts) ** 0.5
        given = parts[1] + (np.var(drawn, axis=1, ddof=1).mean() - parts[1]) / 3
        half = max(half, stats.t.ppf(0.975, 39) * given**0.5)  # no less than patients alone
        both = setting.mean["pooled"].both
        assert (both.low, both.high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), rel=1e-6)


def test_an_undefined_pathology_is_blank_with_a_reason_and_counted(whole: tuple[Path, StudyConfig, Path]) -> None:
    lesion = [r for r in rows(whole[2]) if r["pathology"] == "Lung Lesion" and r["trial"] == "all" and r["aggregation"] == "pooled"]
    assert {(r["iou"], r["low"], r["note"]) for r in lesion} == {("", "", "undefined")}
    assert {r["undefined"] for r in rows(whole[2]) if r["pathology"] == "mean" and r["aggregation"] == "pooled"} == {"1"}
    assert "no test image shows it: Lung Lesion" in (whole[2] / "index.html").read_text()


def test_table_1_has_the_papers_layout(whole: tuple[Path, StudyConfig, Path]) -> None:
    found = table(whole[2] / "table1.csv")
    assert found[0][:6] == ["Task", "Method", "p = 0", "p = 0.5", "p = 0.9", "p = 1"]
    assert [row[:2] for row in found[1:5]] == [["Mean IoU", "CAM"], ["Mean IoU", "IRNet"], ["Airspace Opacity", "CAM"], ["Airspace Opacity", "IRNet"]]
    assert len(found) == 1 + 2 * 11
    assert (whole[2] / "table1_2.csv").is_file(), "one table an init that was mixed"
    mean = next(
        r for r in rows(whole[2]) if (r["method"], r["init"], r["p"], r["trial"], r["pathology"]) == ("irnet", "random", "0.9", "all", "mean")
    )
    assert found[2][4] == f"{float(mean['iou']):.3f}"
    assert found[1][5] == found[2][5], "p = 1 is one training for both methods"
    weak = table(whole[2] / "table2.csv")
    assert weak[0][:5] == ["Encoder", "Train set size", "Experts", "CAM", "IRNet"]
    own = [float(r["iou"]) for r in rows(whole[2]) if r["trial"] != "all" and r["pathology"] == "mean" and r["aggregation"] == "pooled"
           and (r["method"], r["init"], r["p"]) == ("gradcam", "random", "0.0")]  # fmt: skip
    assert weak[1][3] == f"{np.mean(own):.3f} ± {stats.t.ppf(0.975, 2) * stats.sem(own):.5f}"


def test_contrasts_are_paired_by_trial_and_corrected(whole: tuple[Path, StudyConfig, Path]) -> None:
    folder = whole[2]
    found = load(folder / "contrasts.json")
    assert len(found) == 4 + 4 + 2, "one for each method and init where both settings are"
    assert "Contrast that is not in this study: init: moco against chexpert" in (folder / "index.html").read_text()
    values = {(r["method"], r["init"], r["p"], r["trial"]): float(r["iou"]) for r in rows(folder)
              if r["pathology"] == "mean" and r["aggregation"] == "pooled" and r["trial"] != "all"}  # fmt: skip
    first = next(c for c in found if c["first"].startswith("gradcam p=0.9 init=random") and "p=0.0" in c["second"])
    differences = [values["gradcam", "random", "0.9", t] - values["gradcam", "random", "0.0", t] for t in "012"]
    assert first["difference"] == pytest.approx(np.mean(differences))
    low, high = stats.t.interval(0.95, 2, np.mean(differences), stats.sem(differences))
    assert first["intervals"]["trials"] == pytest.approx([low, high])
    ordered = sorted(found, key=lambda c: c["p"])
    highest = 0.0
    for rank, own in enumerate(ordered):
        highest = max(highest, min(1.0, own["p"] * (len(found) - rank)))
        assert own["holm_p"] == pytest.approx(highest)


def test_radiologists_are_measured_as_models_and_the_gap_is_the_papers(whole: tuple[Path, StudyConfig, Path]) -> None:
    store, config, folder = whole
    study = graph(config)
    opened = Store.open(str(store))
    results = read_results(config, study, opened, opened.find_all(study.steps()))
    names = [rival.name for rival in results.comparison.rivals]
    assert names == ["radiologists", "semi-supervised", "weakly supervised", "fully supervised"]
    reader, semi, weak = (rival.mean.mean for rival in results.comparison.rivals[:3])
    assert results.comparison.gap_closed.mean == pytest.approx((semi - weak) / (reader - weak))
    assert 0 < results.comparison.gap_closed.low < results.comparison.gap_closed.mean < results.comparison.gap_closed.high
    counts = counts_table(list(config.data.pathologies), 0.9, 999, "Lung Lesion").to_pandas()
    own = counts[counts.resolution == "model"].groupby("pathology")[["intersection", "predicted", "truth"]].sum()
    iou = own.intersection / (own.predicted + own.truth - own.intersection)
    assert reader == pytest.approx(iou[own.truth > 0].mean())
    cells = table(folder / "radiologists.csv")
    assert cells[1][:2] == ["Mean IoU", f"{reader:.3f}"]
    assert cells[1][5] == f"{semi / reader - 1:+.0%}"


def test_what_is_chosen_does_not_change_with_the_test_set(tmp_path: Path) -> None:
    chosen = []
    for seed in (0, 1):
        config = config_of(tmp_path / str(seed))
        study = fill(tmp_path / str(seed), config, test_seed=seed)
        store = Store.open(str(tmp_path / str(seed)))
        records = store.find_all(study.steps())
        chosen.append({kind: (own.point, own.score) for kind, own in choose(study, records).items()})
        iou = [r.sums["pooled"].estimate()[0] for r in read_results(config, study, store, records).points]
        chosen[-1]["iou"] = iou[0]  # type: ignore[assignment]
    assert chosen[0].pop("iou") != chosen[1].pop("iou"), "the test set did change"
    assert chosen[0] == chosen[1]
    assert list(chosen[0]) == ["semi-supervised", "fully supervised", "weakly supervised"]
    assert chosen[0]["semi-supervised"][0].method == "gradcam"
    assert chosen[0]["semi-supervised"][0].p == 0.9
    assert chosen[0]["semi-supervised"][0].trial == 2, "the trial with the highest validation score"


def test_every_number_links_to_a_record_that_is_there(whole: tuple[Path, StudyConfig, Path]) -> None:
    folder = whole[2]
    page = (folder / "index.html").read_text()
    anchors = set(re.findall(r'id="([^"]+)"', page))
    links = re.findall(r'<td[^>]*><a href="#([^"]+)">', page)
    assert len(links) > 500
    assert set(links) <= anchors
    files = re.findall(r'href="(\.\./[^"]+)"', page)
    assert len(files) >= 2 * 28
    assert all((folder / name).resolve().is_file() for name in files)
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page, "self-contained"
    assert "40 patients" in page
    assert "s²/n" in page


def test_each_figure_is_png_and_svg_with_its_data(whole: tuple[Path, StudyConfig, Path]) -> None:
    folder = whole[2]
    names = {path.stem for path in folder.glob("*.svg")}
    assert names == {"figure2_iou_over_p", "figure3_initialisations", "figure5_radiologists"}
    for name in names:
        with Image.open(folder / f"{name}.png") as image:
            assert min(image.size) > 400
        data = load(folder / f"{name}.json")
        assert {"panel", "line", "x", "iou", "low", "high", "few_patients"} == set(data[0])
    panels = [row["panel"] for row in load(folder / "figure2_iou_over_p.json")]
    assert list(dict.fromkeys(panels)) == ["(a) mean IoU", "(b) Pleural Effusion", "(c) Consolidation", "(d) Edema"]
    bars = {(r["panel"], r["x"]) for r in load(folder / "figure3_initialisations.json")}
    assert ("(a) fully supervised", "Random") in bars
    assert ("(b) weakly supervised, 8 weak images", "CheXpert") in bars


def test_every_line_of_every_panel_is_in_the_legend_in_its_own_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("chexseg_ray.report.figures.figure_bytes", lambda figure: drawn.append(figure) or {})
    bar = [("Random", 0.4, 0.3, 0.5, False)]
    draw(Figure("f", "F", "", {"(a)": {"expert masks": bar}, "(b)": {"CAM": bar, "IRNet": bar}}, "over patients", bars=True), 0.95)
    legend = drawn[0].legends[0]
    assert legend.get_title().get_text() == "95 % intervals over patients"
    assert [text.get_text() for text in legend.get_texts()] == ["expert masks", "CAM", "IRNet"]
    assert len({handle.get_facecolor() for handle in legend.get_patches()}) == 3


def test_what_has_no_interval_is_drawn_without_one_and_few_patients_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("chexseg_ray.report.figures.figure_bytes", lambda figure: drawn.append(figure) or {})
    line = [(0.0, 0.2, math.nan, math.nan, True), (1.0, 0.4, 0.3, 0.5, False)]
    draw(Figure("f", "F", "p", {"(a)": {"CAM": line}}, "over trials and patients"), 0.95)
    axes, legend = drawn[0].axes[0], drawn[0].legends[0]
    ends = axes.containers[0].lines[2][0].get_segments()
    assert not len(ends[0]), "no bar"
    assert np.isnan(axes.containers[0].lines[1][0].get_ydata()[0]), "and no cap"
    np.testing.assert_allclose(np.array(ends[1])[:, 1], [0.3, 0.5])
    assert [[x, y] for x, y in axes.lines[-1].get_xydata()] == [[0.0, 0.2]], "a hollow marker"
    assert "hollow: fewer than 20 positive patients" in legend.get_title().get_text()


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    settings = [SimpleNamespace(setting=SimpleNamespace(init=init)) for init in ("/runs/a/w.pth", "/runs/b/w.pth", "/other/x.pth", "moco")]
    names = [init_name(own.setting.init, settings) for own in settings]  # type: ignore[arg-type]
    assert names == ["a/w.pth", "b/w.pth", "x.pth", "MoCo-CXR"]


@pytest.mark.usefixtures("undrawn")
def test_a_trial_without_any_defined_pathology_is_left_out_of_the_means_intervals(tmp_path: Path) -> None:
    config = config_of(tmp_path, "data.pathologies=[Edema, Cardiomegaly]", "classifier.selection_pathologies=[Edema]",
                       "encoder_classifier.selection_pathologies=[Edema]")  # fmt: skip
    write_report(config, fill(tmp_path, config, absent="Cardiomegaly", blank=("Edema", 0)), Store.open(str(tmp_path)))
    own = [r for r in rows(tmp_path / "report" / "tiny") if r["trial"] == "all" and r["p"] == "0.5" and r["method"] == "gradcam"]
    found = {(r["pathology"], r["interval"].split(",")[0]): r for r in own if r["aggregation"] == "per_image_true_pos_only"}
    for kind in ("trials", "patients", "trials and patients"):
        assert [found["mean", kind][end] for end in ("low", "high")] == [found["Edema", kind][end] for end in ("low", "high")] != ["", ""]
    assert "(2 of 3)" in html(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_identical_trials_and_a_single_one_have_no_interval_over_trials(tmp_path: Path) -> None:
    for name, more, note in (("same", (), "identical trials"), ("one", ("sweep.trials=1",), "1 trial")):
        config = config_of(tmp_path / name, *more)
        write_report(config, fill(tmp_path / name, config, same=True), Store.open(str(tmp_path / name)))
        own = [r for r in rows(tmp_path / name / "report" / "tiny") if r["trial"] == "all" and r["pathology"] == "mean"]
        kinds = {r["interval"].split(",")[0]: r for r in own if r["aggregation"] == "pooled" and r["p"] == "0.5" and r["method"] == "gradcam"}
        assert (kinds["trials"]["low"], kinds["trials"]["note"]) == ("", note)
        assert (kinds["trials and patients"]["low"], kinds["trials and patients"]["note"]) == ("", note)
        assert float(kinds["patients"]["low"]) < float(kinds["patients"]["high"]), "given the networks, patients still vary"
        contrasts = load(tmp_path / name / "report" / "tiny" / "contrasts.json")
        assert {c["holm_p"] for c in contrasts if "p=1.0" not in c["second"]} <= {None}


@pytest.mark.usefixtures("undrawn")
def test_half_a_study_says_what_is_missing(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    study = fill(tmp_path, config, skip=4)
    store = Store.open(str(tmp_path))
    store.put(f"{study.points[0][1].address}/failed.json", b'{"error": "segmentation update 3: loss is nan"}')
    write_report(config, study, store)
    page = (tmp_path / "report" / "tiny" / "index.html").read_text()
    assert "17 of 21 points" in page
    assert "trial=0: segmentation update 3: loss is nan" in page
    assert "gradcam p=0.0 init=chexpert weak_n=8: 2 trials not built" in page
    contrast = load(tmp_path / "report" / "tiny" / "contrasts.json")[0]
    assert contrast["note"] == "not built"


def test_an_empty_store_and_one_without_torch_or_ray_get_their_report(tmp_path: Path, whole: tuple[Path, StudyConfig, Path]) -> None:
    code = (
        "import sys; from chexseg_ray.config import load_config; from chexseg_ray.build import load_study\n"
        "from chexseg_ray.artifacts import Store; from chexseg_ray.report.page import write_report\n"
        "config = load_config(sys.argv[1], sys.argv[2:])\n"
        "write_report(config, load_study(config)[0], Store.open(config.store.root))\n"
        "assert not {'ray', 'torch'} & set(sys.modules), 'imported'\n"
    )
    for store, words in ((tmp_path / "empty", "0 of 21 points"), (whole[0], "42 of 42 points")):
        more = ("sweep.init=[random, chexpert]",) if store == whole[0] else ()
        arguments = [sys.executable, "-c", code, str(TINY), f"store.root={store}", *GRID, CONTRASTS, *more]
        done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
    assert "No point is built yet" in (tmp_path / "empty" / "report" / "tiny" / "index.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_the_papers_own_numbers_stand_beside_a_run_of_the_papers_study(tmp_path: Path) -> None:
    from chexseg_ray.config import load_config

    overrides = [f"store.root={tmp_path}", "report.bootstrap_replicates=100", "data.root=/nowhere"]
    config = load_config(REPOSITORY / "configs" / "paper.yaml", overrides)
    write_report(config, fill(tmp_path, config), Store.open(str(tmp_path)))
    folder = tmp_path / "report" / config.report.name
    found = table(folder / "table1.csv")
    columns, mean = found[0], found[1]
    for p, value in (("p = 0, 20000 weak", "0.142"), ("p = 0.85", "0.261"), ("p = 0.9", "0.270 ± 0.00872"), ("p = 1", "0.246 ± 0.01837")):
        name = next(c for c in columns if c.startswith(p) and c.endswith("paper"))
        assert mean[columns.index(name)] == value
    weak = table(folder / "table2.csv")
    irnet = next(row for row in weak if row[0] == "resnet18-CheXpert" and row[1] == "20000")
    assert irnet[weak[0].index("IRNet paper")] == "0.156 ± 0.00000"
    assert "the paper's own number" in (folder / "index.html").read_text()


def html(store: Path) -> str:
    return (store / "report" / "tiny" / "index.html").read_text()


@pytest.mark.usefixtures("undrawn")
def test_every_link_leads_somewhere_in_a_half_built_report_too(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write_report(config, fill(tmp_path, config, skip=4), Store.open(str(tmp_path)))
    page = html(tmp_path)
    anchors, links = set(re.findall(r'id="([^"]+)"', page)), set(re.findall(r'href="#([^"]+)"', page))
    assert links <= anchors
    assert all((tmp_path / "report" / "tiny" / name).resolve().is_file() for name in re.findall(r'href="(\.\./[^"]+)"', page))
    assert ": not built" in page
    found = (tmp_path / "report" / "tiny" / "table1.csv").read_text()
    assert "of 3 trials: " in found, "a setting with some of its trials says so beside its interval"


@pytest.mark.usefixtures("undrawn")
def test_the_overlap_of_weak_sets_is_that_of_the_subsets_drawn(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    study = fill(tmp_path, config, ids=12)
    write_report(config, study, Store.open(str(tmp_path)))
    from chexseg_ray.segmentation.mixing import weak_subset

    subsets = [set(weak_subset([f"w{i:02d}" for i in range(12)], 0, trial, 8)) for trial in range(3)]
    share = np.mean([len(a & b) / 8 for a, b in ((subsets[0], subsets[1]), (subsets[0], subsets[2]), (subsets[1], subsets[2]))])
    assert 0.3 < share < 1
    assert f"weak sets of 8 share {share:.0%} of their images" in html(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_networks_are_told_apart_everywhere(tmp_path: Path) -> None:
    config = config_of(tmp_path, "segmentation.encoder=[resnet18, resnet34]", "sweep.init=[random, chexpert]")
    write_report(config, fill(tmp_path, config), Store.open(str(tmp_path)))
    folder = tmp_path / "report" / "tiny"
    labels = [c["contrast"] for c in load(folder / "contrasts.json")]
    assert len(set(labels)) == len(labels) == 20
    titles = re.findall(r"<h2[^>]*>(Table 1[^<]*)</h2>", html(tmp_path))
    assert len(set(titles)) == len(titles) == 4
    for name in ("figure2_iou_over_p", "figure3_initialisations"):
        data = [(r["panel"], r["line"], r["x"]) for r in load(folder / f"{name}.json")]
        assert len(set(data)) == len(data), name
    found = table(folder / "table2.csv")
    assert [row[0] for row in found[1:]] == [f"{e}-{i}" for e in ("resnet18", "resnet34") for i in ("Random", "CheXpert")], "in the paper's order"


@pytest.mark.usefixtures("undrawn")
def test_settings_with_more_trials_are_paired_on_those_that_both_have(tmp_path: Path) -> None:
    config = config_of(tmp_path, "sweep.p=[0.0]", "sweep.also=[{p: [0.9], trials: 5}]", "report.contrasts=[{p: [0.9, 0.0]}, {p: [0.0, 0.9]}]")
    write_report(config, fill(tmp_path, config), Store.open(str(tmp_path)))
    found = load(tmp_path / "report" / "tiny" / "contrasts.json")
    assert [c["trials"] for c in found] == [3, 3], "one a method: the same two the other way round are no second test"
    assert all(c["p"] is not None and c["holm_p"] >= c["p"] for c in found)
    assert all(c["carried_by_patients"] >= 20 for c in found)
    assert "significant, Holm&#39;s p" in html(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_a_trial_that_does_not_define_a_pathology_is_left_out_of_its_intervals(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    study = fill(tmp_path, config, blank=("Edema", 0))
    write_report(config, study, Store.open(str(tmp_path)))
    own = [r for r in rows(tmp_path / "report" / "tiny") if r["trial"] == "all" and r["pathology"] == "Edema" and r["p"] == "0.5"]
    kinds = {r["interval"].split(",")[0]: r for r in own if r["aggregation"] == "per_image_true_pos_only" and r["method"] == "gradcam"}
    assert {kind: r["n"] for kind, r in kinds.items()}["trials"] == "2"
    assert all(r["low"] for r in kinds.values()), "two trials and the patients still vary"
    assert {r["undefined"] for r in kinds.values()} == {"1"}


def test_p_0_alone_without_a_reader_or_expert_masks_has_a_report(tmp_path: Path) -> None:
    config = config_of(tmp_path, "sweep.p=[0.0]", "data.benchmark_masks=null")
    write_report(config, fill(tmp_path, config), Store.open(str(tmp_path)))
    page = html(tmp_path)
    assert "Table 2" in page
    assert "Table 1" not in page
    assert "adiologists" not in re.sub(r"<code>.*?</code>", "", page).replace("Gap to the radiologists: not said", "").partition("How it was made")[0]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("positive", "marked"), [(19, True), (20, False)])
def test_fewer_than_20_positive_patients_are_marked(positive: int, marked: bool, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write_report(config, fill(tmp_path, config, positive=("Edema", positive)), Store.open(str(tmp_path)))
    found = next(row for row in table(tmp_path / "report" / "tiny" / "table1.csv") if row[:2] == ["Edema", "CAM"])
    assert found[2].endswith("*") == marked
    notes = {
        r["note"] for r in rows(tmp_path / "report" / "tiny") if r["pathology"] == "Edema" and r["trial"] == "all" and "patients" in r["interval"]
    }
    assert (notes == {"fewer than 20 positive patients"}) == marked
    assert f"Edema {positive}" in html(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_a_difference_that_few_patients_carry_is_marked(tmp_path: Path) -> None:
    one = ("data.pathologies=[Edema]", "classifier.selection_pathologies=[Edema]", "encoder_classifier.selection_pathologies=[Edema]")
    config = config_of(tmp_path, *one)
    write_report(config, fill(tmp_path, config, positive=("Edema", 12)), Store.open(str(tmp_path)))
    found = load(tmp_path / "report" / "tiny" / "contrasts.json")
    assert {c["carried_by_patients"] for c in found} == {12}
    assert re.search(r"mIoU differs by \+0\.\d{3}\* \(", html(tmp_path))


@pytest.mark.usefixtures("undrawn")
def test_without_a_positive_test_image_nothing_is_said_of_a_difference(tmp_path: Path) -> None:
    one = ("data.pathologies=[Edema]", "classifier.selection_pathologies=[Edema]", "encoder_classifier.selection_pathologies=[Edema]")
    config = config_of(tmp_path, *one)
    write_report(config, fill(tmp_path, config, absent="Edema"), Store.open(str(tmp_path)))
    assert "nan" not in re.sub(r"data:image/png;base64,[^\"]*|<style>.*?</style>", "", html(tmp_path), flags=re.DOTALL).replace("significant", "")
    assert "mIoU differs" not in html(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_the_share_of_the_gap_has_no_interval_where_there_may_be_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path)
    monkeypatch.setattr("report.fakes.quality_of", lambda point: 0.9 + 0.001 * (0 < point.p < 1))
    write_report(config, fill(tmp_path, config), Store.open(str(tmp_path)))
    assert re.search(r"Semi-supervision closes -?\d+ % \(no interval, as there may be no gap", html(tmp_path))


@pytest.mark.usefixtures("undrawn")
def test_drawn_expert_masks_are_conditions_of_their_own(tmp_path: Path) -> None:
    config = config_of(tmp_path, "sweep.num_expert=[4]", "sweep.p=[1.0]")
    study = fill(tmp_path, config)
    step = next(own for own in study.steps() if own.name == "images" and own.config["split"] == "expert_train")
    ids = [f"e{i:02d}" for i in range(6)]
    commit(Store.open(str(tmp_path)), step, {"images/part-00000.parquet": pa.table({"cxr_id": ids})}, {}, rows=6)
    positive = dict.fromkeys(config.data.pathologies, 3)
    commit(Store.open(str(tmp_path)), step.inputs["manifest"], {}, {"positive_masks": positive, "positive_labels": positive, "patients": 4})
    write_report(config, study, Store.open(str(tmp_path)))
    from chexseg_ray.segmentation.mixing import expert_subset

    a, b, c = (set(expert_subset(ids, 0, trial, 4)) for trial in range(3))
    assert f"wo trials&#39; 4 expert masks share {np.mean([len(a & b), len(a & c), len(b & c)]) / 4:.0%}" in html(tmp_path)
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
    assert "train/a.jpg" in html(tmp_path)
    assert "undecodable" in html(tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_the_budgets_figure_places_all_expert_masks_at_their_number(tmp_path: Path) -> None:
    config = tiny(tmp_path, "sweep.num_expert=[5, null]", "sweep.p=[1.0]", "report.bootstrap_replicates=100")
    study = fill(tmp_path, config)
    step = next(own for own in study.steps() if own.name == "images" and own.config["split"] == "expert_train")
    commit(Store.open(str(tmp_path)), step, {}, {}, rows=17)
    write_report(config, study, Store.open(str(tmp_path)))
    assert {row["x"] for row in load(tmp_path / "report" / "tiny" / "miou_over_num_expert.json")} == {5, 17}
