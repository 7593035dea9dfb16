"""jobs/predict.py and jobs/export.py with folders, names, cards and runs that are not as they should be."""

import csv
import hashlib
import io
import json
import os
import re
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.dicom_files import made
from PIL import Image

from chexseg_ray.command import Parser, guarded
from chexseg_ray.config.resources import ActorCompute
from chexseg_ray.engine.training_state import from_safetensors, to_safetensors
from chexseg_ray.errors import InputError
from chexseg_ray.predict import files
from chexseg_ray.predict.card import FORMAT, ExportedModel, open_model, read_model, write_model
from chexseg_ray.predict.export import open_export
from chexseg_ray.predict.files import PARTS, FileActor, predict_files
from chexseg_ray.predict.job import export as export_job
from chexseg_ray.predict.job import predict as predict_job
from chexseg_ray.predict.listing import MADE, list_images
from chexseg_ray.predict.output import open_output
from chexseg_ray.predict.predict import _write, open_predictions, run_predict
from chexseg_ray.segmentation.network import build_network
from chexseg_ray.store.store import Store

NAMES = ["Edema", "=Opacity"]
ATROUS = {"encoder_output_stride": 16, "decoder_atrous_rates": [12, 24, 36]}
NETWORK = {"arch": "deeplabv3plus", "encoder_name": "resnet18", "encoder_weights": None, "classes": 2, **ATROUS}
FACTS = {
    "expert_masks": 1,
    "pseudo_masks": 0,
    "pseudo_mask_method": None,
    "p": 1.0,
    "encoder_initialisation": "random",
    "data": "phantom",
}


@pytest.fixture(scope="module")
def model() -> ExportedModel:
    torch.manual_seed(0)
    weights = to_safetensors(dict(build_network("deeplabv3plus", "resnet18", 2).state_dict()))
    card: dict[str, Any] = {
        "format": FORMAT,
        "smp": NETWORK,
        "pathologies": NAMES,
        "thresholds": [0.5, 0.5],
        "normalisation": "imagenet",
        "size": 32,
    }
    return ExportedModel(card | {"trained_on": FACTS, "record": "segmentation/0", "sha256": "0"}, weights)


def draw(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 30), dtype=np.uint8)).save(path, "PNG")


def predict(model: ExportedModel, out: Path, *words: object) -> int:
    return run_predict(model, list_images([str(word) for word in words]), str(out))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_run_deletes_and_overwrites_nothing_but_its_own(model: ExportedModel, tmp_path: Path) -> None:
    draw(tmp_path / "x.png")
    (tmp_path / "out" / "parts").mkdir(parents=True)
    (tmp_path / "out" / PARTS).mkdir()
    for name in ("parts/mine.txt", f"{PARTS}/mine.json"):
        (tmp_path / "out" / name).write_text("mine")
    for _ in range(2):
        assert predict(model, tmp_path / "out", tmp_path / "x.png") == 0
    assert (tmp_path / "out" / "parts" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "out" / PARTS / "mine.json").read_text() == "mine"


def test_overlays_of_an_earlier_run_into_the_same_folder_go(model: ExportedModel, tmp_path: Path) -> None:
    for name in ("x", "y"):
        draw(tmp_path / f"{name}.png")
    assert predict(model, tmp_path / "out", tmp_path / "x.png", tmp_path / "y.png") == 0
    assert predict(model, tmp_path / "out", tmp_path / "x.png") == 0
    assert {path.name for path in (tmp_path / "out" / "overlays").glob("*.png")} == {"x.png"}


@pytest.fixture
def kinds(tmp_path: Path) -> Path:
    """A folder of a good X-ray, one of nearly one grey, an MR image, raw data, and one without window."""
    folder, deep = tmp_path / "x-rays", np.random.default_rng(0).integers(0, 4096, (40, 30)).astype(np.uint16)
    draw(folder / "good.png")
    Image.fromarray(deep).save(folder / "dark.png")
    (folder / "knee.IMA").write_bytes(made(deep, Modality="MR"))
    (folder / "raw.dcm").write_bytes(made(deep, PresentationIntentType="FOR PROCESSING"))
    (folder / "odd.dcm").write_bytes(made(deep, WindowCenter=-5000, WindowWidth=100))
    return folder


def test_notes_are_printed_and_written_and_good_x_rays_have_none(
    model: ExportedModel, kinds: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert predict(model, out, kinds) == 3
    printed = capfd.readouterr()
    assert printed.err == ""
    assert f"note: hardly any grey values: 1 image ({kinds}/dark.png); see notes.csv" in printed.out
    assert "add --allow-modality CODE" in printed.out
    reasons = {row["cxr_id"]: row["reason"] for row in rows(out / "rejects.csv")}
    assert reasons == {"knee.IMA": "modality", "raw": "modality"}
    notes = rows(out / "notes.csv")
    assert {row["cxr_id"] for row in notes} == {"dark", "odd"}
    assert [row["note"] for row in notes if row["cxr_id"] == "dark"] == ["hardly any grey values"]
    assert set(json.loads((out / "predictions.json").read_text())) == {"dark", "good", "odd"}
    assert predict(model, out, kinds / "good.png") == 0
    assert rows(out / "notes.csv") == []
    assert "note: " not in capfd.readouterr().out


def test_modalities_are_allowed_one_by_one_or_with_commas(
    model: ExportedModel,
    kinds: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chexseg_ray.predict.model.load_model", lambda *_: model)

    def rejected(*flags: str) -> set[str]:
        code = predict_job([f"{tmp_path}/model", str(kinds), "--out", f"{tmp_path}/out", *flags])
        names = {row["cxr_id"] for row in rows(tmp_path / "out" / "rejects.csv")}
        assert code == (3 if names else 0)
        return names

    assert rejected("--allow-modality", "MR") == {"raw"}
    assert rejected("--allow-modality", "MR", "--allow-modality", "FOR PROCESSING") == set()
    assert rejected("--allow-modality", "MR,FOR PROCESSING") == set()
    capsys.readouterr()
    for bad in ("mr", "", "MR;OT", "x" * 500):
        assert predict_job(["model", str(kinds), "--allow-modality", bad]) == 2
        error = capsys.readouterr().err
        assert "is no code of a DICOM Modality" in error
        assert len(error) < 200


def test_parts_of_a_run_that_allowed_other_modalities_are_made_again(kinds: Path, tmp_path: Path) -> None:
    found = list_images([str(kinds)])
    many = replace(found, files=tuple(replace(found.files[0], cxr_id=f"x{i}") for i in range(files.MANY)))
    kept: list[set[str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "drop_parts", lambda _, keep=(): kept.append(set(keep)))
        patch.setattr(files, "_missing", lambda *_: [])
        for allowed in ((), ("MR",), ("OT", "MR"), ("MR", "OT")):
            store = Store.open(str(tmp_path / "out"))
            predict_files(ExportedModel({}, b""), many, store, ActorCompute(), lambda: None, allowed)
    assert kept[0] != kept[1] != kept[2] == kept[3]


def test_an_export_overwrites_an_export_alone(model: ExportedModel, tmp_path: Path) -> None:
    write_model(model, open_export(f"{tmp_path}/ours"))
    open_export(f"{tmp_path}/ours")
    draw(tmp_path / "x.png")
    assert predict(model, tmp_path / "predicted", tmp_path / "x.png") == 0
    for name, content in (("model.json", "{}"), ("model.json", "no JSON"), ("model.safetensors", "theirs")):
        folder = tmp_path / f"{name} {content}"
        folder.mkdir()
        (folder / name).write_text(content)
        message = re.escape(f"has {name}, which jobs/export.py did not write: name another folder")
        with pytest.raises(InputError, match=message):
            open_export(str(folder))
    with pytest.raises(InputError, match=r"has model\.json, which jobs/export\.py did not write"):
        open_export(f"{tmp_path}/predicted")


@pytest.mark.parametrize(
    "name", ["predictions.json", "areas.csv", "notes.csv", "model.json", "overlays/x.png", "overlays"]
)
def test_an_out_that_holds_what_we_did_not_make_is_refused(name: str, model: ExportedModel, tmp_path: Path) -> None:
    draw(tmp_path / "x.png")
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(InputError, match=f"has {name.partition('/')[0]}, which no run of this job made"):
        predict(model, tmp_path / "out", tmp_path / "x.png")
    assert (tmp_path / "out" / name).read_text() == "mine"


def test_an_out_that_cannot_be_a_folder_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    for opened in (open_output, open_predictions):
        for out in ("file", "file/below/it"):
            with pytest.raises(InputError, match=rf"^--out={tmp_path}/{out}: {tmp_path}/file is a file: name a folder"):
                opened(f"{tmp_path}/{out}")
        with pytest.raises(InputError, match=r"^--out=nosuch://x: pyarrow cannot open it"):
            opened("nosuch://x")
    monkeypatch.setattr(os, "access", lambda *_: False)  # a test may run as root
    with pytest.raises(InputError, match="may not be written"):
        open_output(f"{tmp_path}/new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_overlays_of_a_run_that_was_killed_are_no_x_rays(
    model: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        draw(tmp_path / f"{name}.png")
    for first in (tmp_path / "1", f"file://{tmp_path}/2"):
        with monkeypatch.context() as patch:
            patch.setattr("chexseg_ray.predict.predict._write", lambda _, groups: next(groups) and sys.exit("killed"))
            with pytest.raises(SystemExit):
                run_predict(model, list_images([str(tmp_path)]), str(first))
    assert len(list(tmp_path.glob("*/overlays/*.png"))) == 4
    assert [image.cxr_id for image in list_images([str(tmp_path)]).files] == ["a", "b"]


def test_parts_are_of_the_same_files_models_and_overlays(
    model: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which groups a resumed run predicts; Ray's actors are called here, in this process."""
    for name in ("MANY", "BATCH"):
        monkeypatch.setattr(f"chexseg_ray.predict.files.{name}", 2)
    ran: list[str] = []

    def run_actors(
        _: str, what: str, groups: list[dict[str, Any]], read: object, actor: type[FileActor], facts: Any, *more: object
    ) -> None:
        made = actor(*facts)
        ran.extend(group["files"][0][0] for group in groups if made(group, []))

    monkeypatch.setattr("chexseg_ray.predict.files.run_actors", run_actors)
    for i in range(5):
        draw(tmp_path / "in" / f"x{i}.png", i)
    out = Store.open(str(tmp_path / "out"))

    def first_of_groups(of: ExportedModel = model) -> list[str]:
        ran.clear()
        images = list_images([str(tmp_path / "in")])
        groups = list(predict_files(of, images, out, ActorCompute(max_actors=1), lambda: None))
        assert sum(len(group["entries"]) + len(group["rejects"]) for group in groups) == 5
        return ran[:]

    assert first_of_groups() == ["x0", "x2", "x4"]
    assert first_of_groups() == []
    draw(tmp_path / "in" / "x3.png", 99)
    assert first_of_groups() == ["x2"], "another X-ray under the same name"
    (tmp_path / "out" / "overlays" / "x4.png").unlink()
    assert first_of_groups() == ["x4"], "an overlay that is gone"
    other = ExportedModel(model.card | {"thresholds": [0.4, 0.5]}, model.weights)
    assert first_of_groups(other) == first_of_groups() == ["x0", "x2", "x4"], "the overlays are the last model's"
    (tmp_path / "in" / "x1.png").write_bytes(b"broken")
    assert first_of_groups() == ["x0"]
    assert not out.exists("overlays/x1.png"), "nor is there an overlay of what is now rejected"


def test_hostile_names_are_harmless_in_csv_files_and_on_a_terminal(
    model: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    good = ['=HYPERLINK("x").png', "-y.png", "@z.png", "я" * 120 + ".png", ".png"]
    bad = ["+1.png", "new\nline\x1b[31m.png", os.fsdecode(b"bad\xff.png")]
    for name in good:
        draw(Path(name))
    for name in bad:
        Path(name).write_bytes(b"no image")
    assert predict(model, Path("out"), *good, *bad) == 3
    areas, rejects = rows(Path("out/areas.csv")), rows(Path("out/rejects.csv"))
    predictions = json.loads(Path("out/predictions.json").read_text())
    assert len(predictions) == len(list(Path("out/overlays").glob("*.png"))) == len(good)
    cells = [cell for row in areas + rejects for cell in row.values()]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert {row["pathology"] for row in areas} == {"Edema", "'=Opacity"}
    assert [(row["file"], row["reason"]) for row in rejects] == [
        ("'+1.png", "undecodable"),
        ("new\nline\x1b[31m.png", "undecodable"),
        ("bad\\udcff.png", "name"),
    ]
    said = capsys.readouterr().out
    assert "rejected: new\\nline\\x1b[31m.png: undecodable\n" in said
    assert "\x1b" not in said


def test_many_rejects_are_counted_and_ten_of_them_are_said(
    model: ExportedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "in" / "x.png")
    for i in range(25):
        (tmp_path / "in" / f"bad{i}.png").write_bytes(b"")
    assert predict(model, tmp_path / "out", tmp_path / "in") == 3
    said = capsys.readouterr().out
    assert said.count("undecodable") == 10
    assert "rejected: 15 more, in " in said
    assert len(rows(tmp_path / "out" / "rejects.csv")) == 25


def test_memory_does_not_grow_with_the_number_of_x_rays(tmp_path: Path) -> None:
    groups = (
        {"entries": {f"x{i}": {"Edema": {"counts": str(i % 10) * 40_000}}}, "areas": [], "rejects": []}
        for i in range(800)
    )
    tracemalloc.start()
    done = _write(Store.open(str(tmp_path)), groups)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done == (800, 0)
    assert (tmp_path / "predictions.json").stat().st_size > 32e6 > 3 * peak


def test_an_overlay_of_what_is_rejected_now_goes(model: ExportedModel, tmp_path: Path) -> None:
    for name in ("x", "y"):
        draw(tmp_path / "in" / f"{name}.png")
    assert predict(model, tmp_path / "out", tmp_path / "in") == 0
    (tmp_path / "in" / "y.png").write_bytes(b"")
    assert predict(model, tmp_path / "out", tmp_path / "in") == 3
    assert sorted(os.listdir(tmp_path / "out" / "overlays")) == [MADE, "x.png"]


def test_a_command_lines_words_and_a_poor_terminal_end_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))

        def work(_: object) -> int:
            print("Ж")
            return predict_job(arguments)

        with monkeypatch.context() as patch:
            for name, value in (("stdout", out), ("stderr", err)):
                patch.setattr(sys, name, value)
            code = guarded(Parser(""), work, [])
        out.flush()
        return code, out.buffer.getvalue().decode() + err.buffer.getvalue().decode()  # type: ignore[attr-defined]

    empty = "error: one of the names is empty: write . for the current folder\n"
    assert run("model", "") == (2, f"\\u0416\n{empty}")
    rule = "is neither a file nor a folder: name X-rays, a folder of them or a CSV file"
    unknown = f"error: no\\nsuch\\x1b\\u042f.png: {rule}\n"
    assert run("model", "no\nsuch\x1bЯ.png") == (2, f"\\u0416\n{unknown}")


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": ...},
        {"smp": NETWORK | {"arch": []}},
        {"smp": NETWORK | {"encoder_name": [1]}},
        {"smp": []},
        {"trained_on": FACTS | {"data": {"x": 5}}},
        {"trained_on": FACTS | {"p": 10**400}},
        {"pathologies": "ab"},
        {"thresholds": {"a": 0.5, "b": 0.5}},
        {"record": ...},
        {"record": 5},
        {"pathologies": ["Edema", "\ud800"]},
        {"pathologies": ["Edema", "two\nlines"]},
        {"pathologies": ["Edema", "x" * 1000]},
        {"trained_on": FACTS | {"expert_masks": 10**4000}},
        {"trained_on": FACTS | {"pseudo_mask_method": {}}},
        {"trained_on": FACTS | {"licence": ["x"]}},
        *({"smp": NETWORK | {"encoder_name": name}} for name in ("tu-local-dir:..", "tu-HF_HUB:a/b", "tu-hf-hub:a/b")),
    ],
)
def test_a_card_made_by_hand_is_refused_in_a_line(change: dict[str, Any], model: ExportedModel, tmp_path: Path) -> None:
    card = {name: value for name, value in (model.card | change).items() if value is not ...}
    write_model(ExportedModel(card, b""), Store.open(str(tmp_path)))
    with pytest.raises(InputError, match=r"model\.json: is not a card of"):
        read_model(str(tmp_path))


@pytest.mark.parametrize(
    "change", [{"size": 33}, {"smp": NETWORK | {"arch": "nosuch"}}, {"smp": NETWORK | {"decoder_atrous_rates": 3}}]
)
def test_a_card_whose_network_takes_no_such_image_is_refused_in_a_line(
    change: dict[str, Any], model: ExportedModel
) -> None:
    with pytest.raises(InputError, match="do not go together"):
        open_model(ExportedModel(model.card | change, model.weights))


@pytest.mark.parametrize("thresholds", [[0.0, 0.5], [-0.0, 0.5], [0.0, 0.0]])
def test_a_model_whose_masks_are_the_whole_image_is_refused_by_both_jobs(
    thresholds: list[float], model: ExportedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"thresholds": thresholds, "sha256": hashlib.sha256(model.weights).hexdigest()}
    write_model(ExportedModel(model.card | facts, model.weights), Store.open(f"{tmp_path}/model"))
    draw(tmp_path / "x.png")
    names = "Edema" if thresholds[1] else "Edema, =Opacity"
    rule = f"{tmp_path}/model: the threshold of {names} is 0, which makes a mask of the whole image"
    for job, words in ((predict_job, [f"{tmp_path}/x.png"]), (export_job, [])):
        assert job([f"{tmp_path}/model", *words, "--out", f"{tmp_path}/out"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {rule}: train with segmentation.threshold_grid=fine")
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_weights_of_another_type_than_the_networks_are_refused(model: ExportedModel) -> None:
    tensors, _ = from_safetensors(model.weights)
    name = "encoder.conv1.weight"
    bent = to_safetensors(tensors | {name: tensors[name].long()})
    with pytest.raises(InputError, match=r"do not go together \(encoder.conv1.weight is of torch.int64, expected"):
        open_model(ExportedModel(model.card, bent))


def test_files_of_the_user_in_the_folder_of_overlays_stay(model: ExportedModel, tmp_path: Path) -> None:
    for name in ("x", "y"):
        draw(tmp_path / "in" / f"{name}.png")
    overlays = tmp_path / "out" / "overlays"
    assert predict(model, tmp_path / "out", tmp_path / "in") == 0
    (overlays / "notes.txt").write_text("mine")
    (overlays / "figures").mkdir()
    (overlays / "figures" / "figure1.png").write_bytes(b"mine")
    (tmp_path / "in" / "y.png").unlink()
    assert predict(model, tmp_path / "out", tmp_path / "in") == 0
    assert sorted(os.listdir(overlays)) == [MADE, "figures", "notes.txt", "x.png"]
    assert (overlays / "figures" / "figure1.png").read_bytes() == b"mine"
