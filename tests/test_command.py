"""The jobs' command lines: help, schema, flags, overrides, and names that look like flags or overrides."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from studies import REPOSITORY, TINY

from chexseg_ray.command import config_names, find_config, is_override
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.errors import InputError
from chexseg_ray.predict import job as predict_job
from chexseg_ray.report import job as report_job
from chexseg_ray.sweep import job as sweep_job

Main = Callable[[Sequence[str]], int]
MAINS: dict[str, Main] = {
    "sweep": sweep_job.main,
    "report": report_job.main,
    "explain": report_job.explain,
    "predict": predict_job.predict,
    "export": predict_job.export,
}
FLAGS = {
    "sweep": ["--plan", "--schema"],
    "report": ["--schema"],
    "explain": ["--store"],
    "predict": ["--out"],
    "export": ["--out"],
}


def refused(capsys: pytest.CaptureFixture[str], main: Main, *arguments: str) -> str:
    """The one line that a command line ends with, with code 2."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    return err


@pytest.mark.parametrize("name", MAINS)
def test_help_names_every_flag_and_the_sections_of_a_config(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        MAINS[name](["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--help", "--version", *FLAGS[name]):
        assert flag in text
    if name in ("sweep", "report"):
        for section in StudyConfig.model_fields:
            assert f"\n  {section} " in text, section
    assert max(map(len, text.splitlines())) <= 140


@pytest.mark.parametrize("name", MAINS)
def test_the_version_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        MAINS[name](["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("chexseg_ray ")


@pytest.mark.parametrize("name", MAINS)
def test_a_wrong_or_shortened_flag_is_one_line_and_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--paln" in refused(capsys, MAINS[name], "--paln")
    shortened = FLAGS[name][0][:-1]
    assert shortened in refused(capsys, MAINS[name], shortened, "x")


def described(schema: Any, path: str = "") -> Iterator[tuple[str, bool]]:
    """Every field of every section of a schema, and whether its meaning is there."""
    for name, definition in {"": schema, **schema.get("$defs", {})}.items():
        for field, facts in definition.get("properties", {}).items():
            is_section = "$ref" in facts and not name
            yield f"{name}.{field}", is_section or bool(facts.get("description"))


def test_the_schema_of_a_config_has_the_meaning_of_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep_job.main(["--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    fields = dict(described(schema))
    assert len(fields) > 120
    assert [field for field, has_meaning in fields.items() if not has_meaning] == []
    for name, definition in schema["$defs"].items():
        assert definition.get("description"), name


@pytest.mark.parametrize("name", config_names())
def test_the_schema_accepts_the_shipped_configs(name: str) -> None:
    schema, config = StudyConfig.model_json_schema(), yaml.safe_load(find_config(name).read_text(encoding="utf-8"))
    jsonschema.validate(config, schema)
    config["irnet"]["random_walk"] = {"radius": 3, "beta": 5.0, "steps": 8}
    jsonschema.validate(config, schema)
    config["irnet"]["random_walk"] = "chexsg"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, schema)


def test_a_folder_named_like_a_config_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert find_config("demo").is_file()
    loaded: list[str] = []
    monkeypatch.setattr("chexseg_ray.predict.model.load_model", lambda name, overrides: loaded.append(name))
    monkeypatch.setattr("chexseg_ray.predict.export.run_export", lambda *_: 0)
    assert predict_job.export(["demo"]) == 0
    (tmp_path / "demo" / "model.json").write_text("{}")
    assert predict_job.export(["demo"]) == 0
    assert loaded == [str(find_config("demo")), "demo"], "an exported model of that name comes first"


def test_a_job_of_another_checkout_is_refused(tmp_path: Path) -> None:
    """Its own code would be left aside for the installed package's."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "chexseg_ray").mkdir()
    shutil.copy(REPOSITORY / "jobs" / "sweep.py", tmp_path / "jobs")
    command = [sys.executable, str(tmp_path / "jobs" / "sweep.py"), "--plan"]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=env)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/jobs/sweep.py: the installed chexseg_ray is that of {REPOSITORY}")
    assert len(done.stderr.splitlines()) == 1


def test_configs_are_found_by_their_names_and_files_by_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"demo", "paper", "evidence", "real"} <= set(config_names())
    assert find_config("paper").name == "paper.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper").write_text("mine")
    assert find_config("paper") == Path("paper"), "a file of that name comes first"
    with pytest.raises(
        InputError, match=r"nosuch: is neither a file nor a config of the package: .*demo, evidence, paper"
    ):
        find_config("nosuch")


def test_two_configs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "one config file at a time" in refused(capsys, sweep_job.main, "demo", "paper")


def test_names_that_begin_with_a_dash_or_hold_an_equals_sign_can_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run_study(config: StudyConfig, plan_only: bool, asked: str) -> int:
        seen.append((asked, config.sweep.p, plan_only))
        return 0

    seen: list[tuple[str, Any, bool]] = []
    monkeypatch.setattr("chexseg_ray.sweep.run.run_study", run_study)
    for name in ("-x.yaml", "p.0=1.yaml", "sweep.p=[1.0]"):
        (tmp_path / name).write_text(TINY.read_text())
    assert sweep_job.main(["sweep.trials=1", "--plan", "--", "-x.yaml"]) == 0
    assert sweep_job.main(["p.0=1.yaml", "sweep.p=[0.25]"]) == 0
    assert sweep_job.main(["--", "sweep.p=[1.0]"]) == 0, "behind -- everything is a name"
    assert seen == [
        ("-x.yaml sweep.trials=1", (0.5,), True),
        ("p.0=1.yaml sweep.p=[0.25]", (0.25,), False),
        ("sweep.p=[1.0]", (0.5,), False),
    ]
    assert "unrecognized arguments: -x.yaml" in refused(capsys, sweep_job.main, "-x.yaml")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("sweep.p=[1.0]", True),
        ("segmentation.learning_rate={100: 1e-3}", True),
        ("pretraining.imagenet_files.resnet18=x", True),
        ("configs/demo.yaml", False),
        ("s3://bucket/a=b.yaml", False),
        ("./a=b.yaml", False),
        ("demo", False),
    ],
)
def test_what_counts_as_an_override(word: str, expected: bool) -> None:
    assert is_override(word) is expected


@pytest.mark.parametrize("form", [["--out", "somewhere"], ["--out=somewhere"]])
def test_out_takes_both_forms(form: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr("chexseg_ray.predict.predict.open_predictions", lambda out: seen.append((out,)))
    monkeypatch.setattr("chexseg_ray.predict.listing.list_images", lambda images: tuple(images))
    monkeypatch.setattr("chexseg_ray.predict.model.load_model", lambda name, overrides: (name, overrides))
    monkeypatch.setattr("chexseg_ray.predict.predict.run_predict", lambda *arguments: seen.append(arguments) or 0)
    assert predict_job.predict(["model", *form, "a.png", "store.root=s", "k=v.png", "--", "-b.png"]) == 0
    images = ("a.png", "k=v.png", "-b.png")
    assert seen == [("somewhere",), (("model", ["store.root=s"]), images, "somewhere", ())]


def test_a_missing_model_and_an_empty_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "name a MODEL" in refused(capsys, predict_job.predict)
    assert "one of the names is empty" in refused(capsys, predict_job.export, "")
    assert "--out is empty" in refused(capsys, predict_job.export, "model", "--out=")
    assert "name one ADDRESS or ROW" in refused(capsys, report_job.explain)


def test_a_reader_of_the_output_that_ends_early_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(REPOSITORY / "jobs" / "sweep.py"), "--schema"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=100, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
