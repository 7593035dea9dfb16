"""jobs/store.py clean STORE CONFIG, and jobs/sweep.py --verify, on a whole study."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from studies import TINY, Job, tiny

from chexseg_ray.engine.execution import make_execution
from chexseg_ray.errors import InputError
from chexseg_ray.store.store import Store
from chexseg_ray.study.sources import load_study
from chexseg_ray.sweep.build import build
from chexseg_ray.sweep.verify import verify_sources

pytestmark = pytest.mark.ray


def test_steps_that_no_config_names_are_listed_and_deleted_only_when_asked(store_copy: Path, job: Job) -> None:
    study = (str(store_copy), str(TINY))
    assert "left over: 0" in job("store.py", "clean", *study).stdout
    listed = job("store.py", "clean", *study, "sweep.trials=1").stdout
    kinds = [
        line.split()[0] + " " + line.split()[1].split("/")[0] for line in listed.splitlines() if line.startswith("  ")
    ]
    assert {"step segmentation", "step evaluation", "logs tensorboard"} <= set(kinds)
    assert kinds.count("step segmentation") == 1, "of two trials"
    assert not {"step classifier", "step images", "step phantom"} & set(kinds)
    done = job("store.py", "clean", *study, "sweep.trials=1", "--delete")
    assert done.returncode == 0, done.stderr
    again = job("sweep.py", str(TINY), f"store.root={store_copy}", "sweep.trials=1", "--plan")
    assert "0 are missing" in again.stdout or "nothing" in again.stdout, again.stdout
    assert job("store.py", "verify", str(store_copy)).returncode == 0


def test_phantom_images_are_compared_with_what_was_decoded(store_copy: Path, job: Job) -> None:
    arguments = (str(TINY), f"store.root={store_copy}", "--verify")
    done = job("sweep.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "images compared with what was decoded" in done.stdout


def test_a_source_image_that_changed_or_is_gone_is_named(
    phantom_root: Path, tmp_path: Path, private_ray: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    private_ray()
    root = Path(shutil.copytree(phantom_root, tmp_path / "data"))
    config = tiny(tmp_path / "store", f"data.root={root}")
    study, source = load_study(config)
    store = Store.open(str(tmp_path / "store"))
    step = next(step for step in study.upstream() if step.name == "images" and step.config["split"] == "validation")
    record = build(step, store, make_execution(config, source, lambda: None))
    assert verify_sources(config, study, source, store) == 0
    assert "weak: its images are not decoded yet" in capsys.readouterr().out
    manifest = store.find(step.inputs["manifest"])
    assert manifest is not None
    paths = store.read_table(manifest, "manifest.parquet", ["path"]).column("path").to_pylist()
    assert len(paths) == record.rows
    first, second, *_ = [root / "CheXpert-v1.0" / path for path in paths]
    first.write_bytes(first.read_bytes()[:-1] + b"x")
    second.unlink()
    with pytest.raises(
        InputError, match=rf"^2 of \d+ images have changed .*or delete \S+/{step.address} and run again"
    ):
        verify_sources(config, study, source, store)
    out = capsys.readouterr().out
    assert f"changed: {first}: its bytes are not those that were decoded" in out
    assert f"changed: {second}: is gone" in out
