"""The page: every link followed, whole, half and empty."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from report.fakes import fill, load
from report.reports import CONTRASTS, GRID, config_of, html
from studies import REPOSITORY, TINY

from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.report import page as page_module
from chexseg_ray.report.page import write_report
from chexseg_ray.store.store import Store


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


def test_an_empty_store_and_one_without_torch_or_ray_get_their_report(
    tmp_path: Path, whole: tuple[Path, StudyConfig, Path]
) -> None:
    code = (
        "import sys\n"
        "from chexseg_ray.config.parse import load_config\n"
        "from chexseg_ray.report.page import write_report\n"
        "from chexseg_ray.store.store import Store\n"
        "from chexseg_ray.study.sources import load_study\n"
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
def test_every_link_leads_somewhere_in_a_half_built_report_too(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write_report(config, fill(tmp_path, config, skip=4), Store.open(str(tmp_path)))
    page = html(tmp_path)
    anchors, links = set(re.findall(r'id="([^"]+)"', page)), set(re.findall(r'href="#([^"]+)"', page))
    assert links <= anchors
    files = re.findall(r'href="(\.\./[^"]+)"', page)
    assert all((tmp_path / "report" / "tiny" / name).resolve().is_file() for name in files)
    assert ": not built" in page
    found = (tmp_path / "report" / "tiny" / "table1.csv").read_text()
    assert "of 3 trials: " in found, "a setting with some of its trials says so beside its interval"


def test_p_0_alone_without_a_reader_or_expert_masks_has_a_report(tmp_path: Path) -> None:
    config = config_of(tmp_path, "sweep.p=[0.0]", "data.benchmark_masks=null")
    write_report(config, fill(tmp_path, config), Store.open(str(tmp_path)))
    page = html(tmp_path)
    assert "Table 2" in page
    assert "Table 1" not in page
    without_code = re.sub(r"<code>.*?</code>", "", page)
    assert "adiologists" not in without_code.partition("How it was made")[0]


@pytest.mark.usefixtures("undrawn")
def test_any_change_of_the_packages_code_makes_the_report_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    shutil.copytree(Path(page_module.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr("chexseg_ray.report.page.__file__", str(package / "report" / "page.py"))
    store = tmp_path / "store"
    config = config_of(store)
    study = fill(store, config)
    index = store / "report" / "tiny" / "index.html"
    write_report(config, study, Store.open(str(store)))

    def is_rewritten() -> bool:
        before = index.stat().st_ino, index.stat().st_mtime_ns
        write_report(config, study, Store.open(str(store)), unchanged=True)
        return before != (index.stat().st_ino, index.stat().st_mtime_ns)

    assert not is_rewritten()
    for name in ("study/graph.py", "config/axes.py", "store/store.py", "progress.py", "report/page.html.j2"):
        with (package / name).open("a") as stream:
            stream.write("\n# changed\n")
        assert is_rewritten(), name
        assert not is_rewritten(), name
    (package / "data" / "new.py").write_text("")
    assert is_rewritten()


@pytest.mark.usefixtures("undrawn")
def test_a_report_deletes_its_own_earlier_files_and_nothing_else(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    study, store = fill(tmp_path, config), Store.open(str(tmp_path))
    write_report(config, study, store)
    folder = tmp_path / "report" / "tiny"
    assert (folder / "contrasts.csv").is_file()
    (folder / "notes.txt").write_text("mine")
    (folder / "drafts").mkdir()
    (folder / "drafts" / "index.html").write_text("mine")
    without = config_of(tmp_path, "report.contrasts=[]")
    write_report(without, study, store)
    assert not (folder / "contrasts.csv").exists()
    assert (folder / "notes.txt").read_text() == (folder / "drafts" / "index.html").read_text() == "mine"
    listed = set((folder / "files.txt").read_text().splitlines())
    assert listed | {"files.txt", "made_of.sha256", "notes.txt", "drafts"} == {path.name for path in folder.iterdir()}


@pytest.mark.usefixtures("undrawn")
def test_an_error_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    study, store = fill(tmp_path, config, skip=4), Store.open(str(tmp_path))
    for step, content in zip(
        (step for _, step in study.points), (b"", b"[]", b'{"error": 3}', b"[" * 2000), strict=False
    ):
        store.put(f"{step.address}/failed.json", content)
    write_report(config, study, store)
    page = (tmp_path / "report" / "tiny" / "index.html").read_text()
    assert page.count("its error cannot be read (failed.json is damaged)") == 3
