"""jobs/predict.py writes masks of a user's own X-rays in CheXlocalize's format.

jobs/export.py writes a model that smp can load without this package.
"""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from report.fakes import commit, graph
from studies import REPOSITORY, TINY, tiny

from chexseg_ray.data.images import letterbox
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.engine.training_state import from_safetensors, to_safetensors
from chexseg_ray.errors import InputError
from chexseg_ray.predict.card import ExportedModel, export_record, open_model, read_model, write_model
from chexseg_ray.predict.export import open_export, run_export
from chexseg_ray.predict.files import PARTS
from chexseg_ray.predict.listing import list_images
from chexseg_ray.predict.model import load_model
from chexseg_ray.predict.predict import run_predict
from chexseg_ray.segmentation.network import build_network
from chexseg_ray.store.store import Store
from chexseg_ray.study.choice import choose

pytestmark = pytest.mark.ray  # one of them starts it, others whole jobs

OPTIONS = {"output_stride": 16, "atrous_rates": [12, 24, 36]}
THRESHOLDS = np.linspace(0.42, 0.52, 10).astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two trained points: random weights, and trial 1 better by validation."""
    root = tmp_path_factory.mktemp("models") / "store"
    config, opened = tiny(root), Store.open(str(root))
    for point, evaluation in graph(config).points:
        torch.manual_seed(point.trial)
        network = build_network("deeplabv3plus", "resnet18", 10)
        facts = {
            "architecture": "deeplabv3plus",
            "encoder": "resnet18",
            **OPTIONS,
            "pathologies": list(PATHOLOGIES),
            "size": 64,
        }
        weights = to_safetensors(
            dict(network.state_dict()), {"model": json.dumps(facts | {"normalisation": "chexpert"})}
        )
        chosen = {
            n: {"threshold": float(t), "iou": None, "source": "validation"}
            for n, t in zip(PATHOLOGIES, THRESHOLDS, strict=True)
        }
        metrics = {
            "thresholds": chosen,
            "validation_miou": 0.1 + point.trial,
            "history": [],
            "best_update": 12,
            "weak_ids": 8,
            "expert_ids": 10,
        }
        commit(opened, evaluation.inputs["segmentation"], {"weights.safetensors": weights}, metrics)
    return root


@pytest.fixture(scope="module")
def x_rays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of X-rays as people have them: a JPEG, a 16-bit PNG, one in CheXpert's layout, and a text file."""
    folder, rng = tmp_path_factory.mktemp("x-rays"), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (120, 90), dtype=np.uint8)).save(folder / "one.jpg")
    Image.fromarray(rng.integers(0, 65536, (75, 200), dtype=np.uint16)).save(folder / "two.png")
    below = folder / "patient00001" / "study1"
    below.mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(below / "view1_frontal.jpg")
    (folder / "notes.txt").write_text("not an image")
    return folder


def predict(model: ExportedModel, words: list[str], out: str) -> int:
    return run_predict(model, list_images(words), out)


def the_best(store: Path) -> str:
    config = tiny(store)
    study = graph(config)
    opened = Store.open(str(store))
    best = next(iter(choose(study, opened.find_all(step.inputs["segmentation"] for _, step in study.points)).values()))
    assert best.point.trial == 1
    return f"{store}/{best.segmentation.address}"


def read_predictions(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    raw = json.loads((folder / "predictions.json").read_text())
    return {
        i: {n: coco.decode({"size": m["size"], "counts": m["counts"].encode()}).astype(bool) for n, m in image.items()}
        for i, image in raw.items()
    }


@pytest.fixture(scope="module")
def predicted(store: Path, x_rays: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predicted")
    assert predict(load_model(str(TINY), [f"store.root={store}"]), [str(x_rays)], str(out)) == 0
    return out


def test_every_image_and_pathology_is_there_at_the_images_own_size(predicted: Path) -> None:
    masks = read_predictions(predicted)
    sizes = {"one": (120, 90), "two": (75, 200), "patient00001_study1_view1_frontal": (64, 64)}
    assert masks.keys() == sizes.keys()
    for cxr_id, by_pathology in masks.items():
        assert list(by_pathology) == list(PATHOLOGIES)
        assert {mask.shape for mask in by_pathology.values()} == {sizes[cxr_id]}
        with Image.open(predicted / "overlays" / f"{cxr_id}.png") as image:
            assert image.mode == "RGB"
            assert min(image.size) > 200
    card = json.loads((predicted / "model.json").read_text())
    assert "not for clinical use" in card["notice"]
    assert card["trained_on"]["expert_masks"] == 10


def test_masks_areas_and_probabilities_are_the_networks(predicted: Path, store: Path, x_rays: Path) -> None:
    network = open_model(load_model(the_best(store))).model
    pixels = letterbox(np.asarray(Image.open(x_rays / "one.jpg")), 64)
    with torch.no_grad():
        scores = network(network_input(torch.tensor(pixels[None]), "chexpert")).sigmoid()[0]
    inner = scores[:, :, 8:56]  # 120 x 90 lies in 64 x 48
    whole = torch.nn.functional.interpolate(inner[None], size=(120, 90), mode="bilinear", align_corners=False)
    whole = whole[0].numpy()
    masks = read_predictions(predicted)["one"]
    with (predicted / "areas.csv").open() as stream:
        areas = {row["pathology"]: row for row in csv.DictReader(stream) if row["cxr_id"] == "one"}
    for k, name in enumerate(PATHOLOGIES):
        assert (masks[name] != (whole[k] > THRESHOLDS[k])).mean() < 1e-3
        assert int(areas[name]["pixels"]) == masks[name].sum()
        assert float(areas[name]["share"]) == pytest.approx(masks[name].mean(), abs=1e-6)
        assert float(areas[name]["probability"]) == pytest.approx(float(inner[k].max()), abs=1e-4)


def test_a_study_a_record_and_an_exported_folder_name_the_same_model(
    predicted: Path, store: Path, x_rays: Path, tmp_path: Path
) -> None:
    exported = tmp_path / "exported"
    assert run_export(load_model(the_best(store)), open_export(str(exported))) == 0
    for i, name in enumerate((the_best(store), str(exported))):
        assert predict(load_model(name), [str(x_rays)], str(tmp_path / str(i))) == 0
        assert (tmp_path / str(i) / "predictions.json").read_bytes() == (predicted / "predictions.json").read_bytes()


def test_what_is_no_x_ray_is_rejected_by_name_and_the_rest_is_predicted(
    store: Path, x_rays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    good = (x_rays / "one.jpg").read_bytes()
    (tmp_path / "in" / "good.jpg").write_bytes(good)
    (tmp_path / "in" / "cut.jpg").write_bytes(good[:300])
    model = load_model(the_best(store))
    assert predict(model, [str(tmp_path / "in")], str(tmp_path / "out")) == 3
    assert list(read_predictions(tmp_path / "out")) == ["good"]
    with (tmp_path / "out" / "rejects.csv").open() as stream:
        assert [(r["cxr_id"], r["reason"]) for r in csv.DictReader(stream)] == [("cut", "undecodable")]
    assert "rejected:" in capsys.readouterr().out
    (tmp_path / "in" / "good.jpg").unlink()
    with pytest.raises(InputError, match="1 of 1 files are no X-rays"):
        predict(model, [str(tmp_path / "in")], str(tmp_path / "out"))


def test_predictions_made_before_are_no_x_rays(store: Path, x_rays: Path, tmp_path: Path) -> None:
    shutil.copytree(x_rays, tmp_path / "in")
    model, out = load_model(the_best(store)), f"{tmp_path}/in/predictions"
    for _ in range(2):
        assert predict(model, [f"{tmp_path}/in"], out) == 0
        assert len(read_predictions(Path(out))) == 3
    assert len(list_images([f"{tmp_path}/in"]).files) == 3


@pytest.mark.parametrize("change", ["metrics", "run", "weights"])
def test_a_record_that_is_not_whole_is_named_in_a_line(change: str, store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store")
    folder = tmp_path / "store" / "segmentation" / the_best(store).rsplit("/", 1)[-1]
    record = json.loads((folder / "record.json").read_text())
    del record["run"]["sha256"]  # as a record of an old version, which has no hash of itself
    if change == "weights":
        (weights,) = folder.glob("*/weights.safetensors")
        data = bytearray(weights.read_bytes())
        data[8] ^= 1  # in the header; as well it could be one of the weights
        weights.write_bytes(data)
    else:
        (folder / "record.json").write_text(json.dumps(record | {change: {}}))
    message = "its bytes are not" if change == "weights" else "is not a whole record of a segmentation network"
    with pytest.raises(InputError, match=message):
        load_model(str(folder))


def test_a_model_that_is_none_is_named(tmp_path: Path, store: Path) -> None:
    with pytest.raises(InputError, match=r"has no model\.json"):
        load_model(str(tmp_path))
    point, evaluation = graph(tiny(store)).points[0]
    commit(Store.open(str(store)), evaluation, {}, {})
    card = load_model(f"{store}/{evaluation.address}").card
    assert card["record"] == evaluation.inputs["segmentation"].address, f"the network of {point.label}"
    with pytest.raises(InputError, match="is not a record of a segmentation network"):
        load_model(f"{store}/segmentation/000000000000")
    with pytest.raises(InputError, match="has no trained model with a validation score"):
        load_model(str(TINY), [f"store.root={tmp_path / 'empty'}"])
    with pytest.raises(InputError, match="overrides go with a study's YAML file"):
        load_model(the_best(store), ["segmentation.fixed_threshold=0.3"])
    (tmp_path / "model.json").write_text('{"format": "another"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is not a card of"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"smp": {"arch": "unet", "encoder_name": "resnet18", "encoder_weights": "imagenet", "classes": 10}},
        {"smp": {"arch": "unet", "encoder_name": "tu-hf-hub:evil/x", "encoder_weights": None, "classes": 10}},
        {"smp": {"arch": "unet", "encoder_name": "resnet18", "encoder_weights": None, "classes": 10, "aux_params": {}}},
        {"size": 1_000_000},
        {"thresholds": [[0.5]] * 10},
        {"thresholds": [float("nan")] * 10},
        {"pathologies": ["Edema"] * 10},
        {"normalisation": "none"},
        {"trained_on": {}},
    ],
)
def test_a_card_that_asks_for_anything_else_is_refused(change: dict[str, object], store: Path, tmp_path: Path) -> None:
    model = load_model(the_best(store))
    write_model(ExportedModel(model.card | change, model.weights), Store.open(str(tmp_path)))
    with pytest.raises(InputError, match="is not a card of"):
        load_model(str(tmp_path))


def test_weights_that_are_not_the_cards_are_refused(store: Path, tmp_path: Path) -> None:
    model = load_model(the_best(store))
    write_model(ExportedModel(model.card, model.weights[:-5]), Store.open(str(tmp_path)))
    with pytest.raises(InputError, match=r"is not the file that model\.json was written with"):
        load_model(str(tmp_path))
    with pytest.raises(InputError, match="do not go together"):
        open_model(ExportedModel(model.card | {"smp": model.card["smp"] | {"classes": 3}}, model.weights))
    tensors, _ = from_safetensors(model.weights)
    assert list(tensors) == sorted(tensors)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        open_model(ExportedModel(model.card, to_safetensors(tensors)))
    with pytest.raises(InputError, match="do not go together"):
        open_model(ExportedModel(model.card, b"junk"))


def test_one_x_ray_needs_neither_ray_nor_a_cluster(store: Path, x_rays: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from chexseg_ray.predict.job import predict\n"
        "code = predict()\n"
        "assert 'ray' not in sys.modules, 'imported'\n"
        "sys.exit(code)"
    )
    arguments = [sys.executable, "-c", code, the_best(store), str(x_rays / "one.jpg"), f"--out={tmp_path}"]
    done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "not for clinical use" in done.stdout
    assert "trained on 10 expert masks, 8 pseudo masks (of unknown method), p = 0.5" in done.stdout
    assert "1 of 1 X-rays predicted" in done.stdout
    arguments = [*arguments[:3], "/nowhere", str(x_rays / "one.jpg")]
    bad = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: /nowhere: has no model.json")


def test_many_files_go_through_ray_data_to_the_same_bytes(
    store: Path, x_rays: Path, tmp_path: Path, private_ray: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    private_ray()  # type: ignore[operator]
    grey = np.asarray(Image.open(x_rays / "one.jpg"))
    (tmp_path / "in").mkdir()
    for i in range(20):
        Image.fromarray(np.roll(grey, i, axis=0)).save(tmp_path / "in" / f"x{i:02d}.png")
    model, threads = load_model(the_best(store)), torch.get_num_threads()
    torch.set_num_threads(1)  # as an actor has
    assert predict(model, [str(tmp_path / "in")], str(tmp_path / "loop")) == 0
    torch.set_num_threads(threads)
    monkeypatch.setattr("chexseg_ray.predict.files.MANY", 4)
    monkeypatch.setattr(Store, "delete", lambda *_: None)  # parts stay
    assert predict(model, [str(tmp_path / "in")], str(tmp_path / "ray")) == 0
    for name in ("predictions.json", "areas.csv", "overlays/x07.png"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "loop" / name).read_bytes(), name
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "ray" / PARTS).iterdir()}
    assert len(parts) == 3
    next(iter(parts)).unlink()
    assert predict(model, [str(tmp_path / "in")], str(tmp_path / "ray")) == 0
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "ray" / PARTS).iterdir()}
    assert sum(after[path] == parts[path] for path in parts) == 2, "a run that was stopped goes on where it was"


def test_the_lines_in_the_docs_load_an_exported_model_with_smp_alone(
    store: Path, x_rays: Path, tmp_path: Path, predicted: Path
) -> None:
    text = (REPOSITORY / "docs" / "predict.md").read_text()
    lines = re.search(r"```python\n(import json.*?)```", text, re.S)
    assert lines is not None
    assert len([line for line in lines.group(1).splitlines() if line]) == 15
    assert "chexseg_ray" not in lines.group(1)
    run_export(load_model(the_best(store)), open_export(str(tmp_path / "exported")))
    Image.open(x_rays / "one.jpg").save(tmp_path / "xray.png")
    code = lines.group(1) + "np.savez('found.npz', inner=[np.asarray(scores).max() for scores in inner], masks=masks)\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    with (predicted / "areas.csv").open() as stream:
        expected = [float(row["probability"]) for row in csv.DictReader(stream) if row["cxr_id"] == "one"]
    ours = read_predictions(predicted)["one"]
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["inner"], expected, atol=1e-4)
        assert found["masks"].shape == (10, 120, 90)
        assert found["masks"].any()
        for name, mask in zip(PATHOLOGIES, found["masks"], strict=True):
            assert (mask != ours[name]).sum() <= 2, name  # scores within rounding of the threshold


def test_the_exported_program_and_the_safetensors_agree(store: Path, tmp_path: Path) -> None:
    run_export(load_model(the_best(store)), open_export(str(tmp_path)))
    program = torch.export.load(io.BytesIO((tmp_path / "model.pt2").read_bytes())).module()
    network = open_model(read_model(str(tmp_path))).model
    for batch in (1, 4):
        images = torch.randn(batch, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(program(images), network(images).sigmoid(), atol=1e-5, rtol=1e-4)
    card = json.loads((tmp_path / "model.json").read_text())
    assert card["thresholds"] == pytest.approx(THRESHOLDS.tolist())
    assert card["record"] in the_best(store)
    assert (card["size"], card["normalisation"], card["pathologies"]) == (64, "chexpert", list(PATHOLOGIES))


def test_a_model_knows_what_it_was_trained_on(store: Path) -> None:
    opened = Store.open(str(store))
    record = opened.find_address(f"segmentation/{the_best(store).rsplit('/', 1)[-1]}")
    assert record is not None
    facts = export_record(opened, record, "CC BY 4.0").card["trained_on"]
    assert facts["licence"] == "CC BY 4.0"
    assert (facts["expert_masks"], facts["pseudo_masks"], facts["p"]) == (10, 8, 0.5)
    assert facts["data"] == "unknown: its manifests are not in the store"
