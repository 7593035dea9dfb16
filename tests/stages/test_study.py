"""The whole study on phantoms, by the command line: once, again, extended, half."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from coco_evaluation import mean_iou
from studies import REPOSITORY, TINY, Job, tiny

from chexseg_ray.data.masks import Rle, decode_rle
from chexseg_ray.evaluation.iou import per_image_iou, pooled_iou
from chexseg_ray.report.results import read_counts
from chexseg_ray.store.step import FileEntry, Record
from chexseg_ray.store.store import Store
from chexseg_ray.study.choice import choose
from chexseg_ray.study.sources import load_study

pytestmark = pytest.mark.ray


def records(store: Path) -> dict[str, Record]:
    return {
        str(p.parent.relative_to(store)): Record.from_json(p.read_bytes())
        for p in sorted(store.glob("*/*/record.json"))
    }


def relist(store: Path, changed: Path) -> None:
    """List a changed file of a step in its record, so that it counts as the step's own."""
    kind, fingerprint, attempt, *names = changed.relative_to(store).parts
    address, path = f"{kind}/{fingerprint}", "/".join(names)
    record = records(store)[address]
    data = changed.read_bytes()
    entry = FileEntry(path, len(data), hashlib.sha256(data).hexdigest())
    files = tuple(entry if other.path == path else other for other in record.files)
    assert files != record.files
    assert record.attempt == attempt
    (store / address / "record.json").write_bytes(replace(record, files=files).to_json())


def stamps(store: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in store.glob("*/*/record.json")}


def parts(store: Path, record: Record, prefix: str) -> Any:
    return Store.open(str(store)).read_tables(record, prefix)


def of(store: Path, name: str, **config: Any) -> Record:
    return next(
        r for r in records(store).values() if r.name == name and all(r.config[k] == v for k, v in config.items())
    )


def test_one_command_goes_through_every_room_to_the_report(tiny_store: Path) -> None:
    names = [r.name for r in records(tiny_store).values()]
    assert {n: names.count(n) for n in set(names)} == {
        "phantom": 1,
        "manifest": 4,
        "images": 4,
        "classifier": 2,
        "cams": 1,
        "pseudo_masks": 1,
        "segmentation": 2,
        "evaluation": 2,
        "benchmark": 1,
        "prediction": 1,
    }
    report = tiny_store / "report" / "tiny"
    others = ["index.html", "table.md", "table.txt", "made_of.sha256", "files.txt", "contrasts.json"]
    others += ["results.csv", "results.parquet", "estimates.csv", "dictionary.csv"]
    figures = ("figure2_iou_over_p", "figure4_examples", "figure5_radiologists")
    assert {p.name for p in report.iterdir()} == {
        *others,
        *(f"{name}.{kind}" for name in ("table1", "radiologists") for kind in ("csv", "md")),
        *(f"{name}.{kind}" for name in figures for kind in ("png", "svg", "json")),
    }
    page = (report / "index.html").read_text()
    assert "2 of 2 points" in page
    assert "not for clinical use" in page.lower()
    assert "drawn by chexseg_ray" in page, "the licence note"
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page, "self-contained"
    printed = (tiny_store / "stdout.txt").read_text()
    assert "to build: 1 phantom" in printed
    assert printed.rstrip().splitlines()[-2].endswith("report/tiny/index.html")


def test_every_row_of_every_stage_is_there_once_in_id_order(tiny_store: Path) -> None:
    for record in records(tiny_store).values():
        if record.name in ("images", "pseudo_masks"):
            prefix = "masks/" if record.name == "pseudo_masks" else "images/"
            ids = parts(tiny_store, record, prefix).column("cxr_id").to_pylist()
            assert ids == sorted(set(ids))
            assert len(ids) == record.rows
    weak = parts(tiny_store, of(tiny_store, "manifest", split="weak"), "manifest").column("cxr_id").to_pylist()
    cams = of(tiny_store, "cams")
    assert parts(tiny_store, cams, "cams/weak/").column("cxr_id").to_pylist() == weak


def test_the_second_run_builds_nothing_and_does_not_import_ray_or_torch(tiny_store: Path) -> None:
    before = stamps(tiny_store)
    code = (
        "import sys\n"
        "from chexseg_ray.sweep.job import main\n"
        "code = main()\n"
        "assert not {'ray', 'torch'} & set(sys.modules), 'imported'\n"
        "sys.exit(code)"
    )
    arguments = [sys.executable, "-c", code, str(TINY), f"store.root={tiny_store}"]
    done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing to build" in done.stdout
    assert stamps(tiny_store) == before


def test_a_sweep_extended_by_one_p_runs_that_values_trials_only(store_copy: Path, job: Job) -> None:
    arguments = (str(TINY), f"store.root={store_copy}", "sweep.p=[0.5, 1.0]")
    planned = job("sweep.py", *arguments, "--plan")
    missing = [line for line in planned.stdout.splitlines() if line.startswith("missing")]
    assert sorted(line.split()[1].split("/")[0] for line in missing) == ["evaluation"] * 2 + ["segmentation"] * 2
    reasons = [line for line in missing if line.startswith("missing segmentation")]
    assert all(re.search(r"  (.*, )?p(, .*)? differs? from ", line) for line in reasons)
    before = stamps(store_copy)
    done = job("sweep.py", *arguments)
    assert done.returncode == 0, done.stderr
    after = stamps(store_copy)
    assert {k: after[k] for k in before} == before
    new = [Record.from_json(Path(p).read_bytes()) for p in after if p not in before]
    assert sorted(r.name for r in new) == ["evaluation"] * 2 + ["prediction"] + ["segmentation"] * 2, (
        "one more kind of model is chosen"
    )
    assert {r.config["p"] for r in new if r.name == "segmentation"} == {1.0}
    again = job("sweep.py", *arguments, "--plan")
    assert " 0 are missing" in again.stdout


def test_the_report_of_half_a_store_says_so(store_copy: Path, job: Job) -> None:
    shutil.rmtree(next(store_copy.glob("evaluation/*")))
    done = job("report.py", str(TINY), f"store.root={store_copy}")
    assert done.returncode == 0, done.stderr
    page = (store_copy / "report" / "tiny" / "index.html").read_text()
    assert "1 of 2 points" in page
    assert "not built" in page
    assert "(1 trial)" in page, "no interval from one trial"
    empty = job("report.py", str(TINY), f"store.root={store_copy / 'empty'}")
    assert empty.returncode == 0, empty.stderr
    assert "No point is built yet" in (store_copy / "empty" / "report" / "tiny" / "index.html").read_text()


def test_the_numbers_of_the_report_are_the_stored_counts(tiny_store: Path) -> None:
    import csv

    with (tiny_store / "report" / "tiny" / "results.csv").open() as stream:
        rows = [r for r in csv.DictReader(stream) if r["aggregation"] == "pooled" and r["trial"] == "0"]
    record = next(r for r in records(tiny_store).values() if r.address == rows[0]["record"])
    counts = parts(tiny_store, record, "counts").to_pandas()
    for row in rows[:-1]:
        pixels = counts[(counts.pathology == row["pathology"]) & (counts.resolution == "model")]
        union = pixels.predicted.sum() + pixels.truth.sum() - pixels.intersection.sum()
        assert row["iou"] == ("" if pixels.truth.sum() == 0 else repr(float(pixels.intersection.sum() / union)))
    defined = [float(r["iou"]) for r in rows[:-1] if r["iou"]]
    assert float(rows[-1]["iou"]) == pytest.approx(np.mean(defined))


def test_images_equal_the_plain_loop(tiny_store: Path, phantom_root: Path) -> None:
    from chexseg_ray.data.images import decode_grey, letterbox

    manifest = parts(tiny_store, of(tiny_store, "manifest", split="weak"), "manifest").to_pylist()
    stored = {
        r["cxr_id"]: r["pixels"]
        for r in parts(tiny_store, of(tiny_store, "images", split="weak"), "images/").to_pylist()
    }
    for row in manifest:
        grey = decode_grey((phantom_root / "CheXpert-v1.0" / row["path"]).read_bytes())
        assert stored[row["cxr_id"]] == letterbox(grey, 64).tobytes()


def test_cams_equal_the_plain_loop_bitwise(tiny_store: Path) -> None:
    import torch

    from chexseg_ray.config.resources import ActorCompute
    from chexseg_ray.engine.tables import binary_column
    from chexseg_ray.stages.cams import CamActor, Settings

    store = Store.open(str(tiny_store))
    record, images = of(tiny_store, "cams"), of(tiny_store, "images", split="weak")
    classifier = of(tiny_store, "classifier", architecture="densenet121")
    threads = torch.get_num_threads()
    from chexseg_ray.store.store import Attempt

    actor = CamActor(Attempt(store, "none", "none"), classifier, Settings(**record.config), ActorCompute())
    for path in images.paths("images/"):
        pixels = binary_column(store.read_table(images, path), "pixels", np.uint8, (64, 64))
        scores, maps = actor.map(pixels)
        table = store.read_table(record, path.replace("images/", "cams/weak/"))
        assert table.column("cam").to_pylist() == [m.tobytes() for m in maps]
        assert np.array_equal(np.array(table.column("probability").to_pylist(), dtype=np.float32), scores)
    torch.set_num_threads(threads)


def test_pseudo_masks_are_the_gated_thresholded_cams_and_empty_in_the_padding(tiny_store: Path) -> None:
    """Rebuilt with torch and pycocotools from the stored CAMs, labels and thresholds."""
    import torch
    import torch.nn.functional as F
    from pycocotools import mask as coco

    record = of(tiny_store, "pseudo_masks")
    thresholds = [record.metrics["thresholds"][name]["threshold"] for name in record.config["pathologies"]]
    labels = {
        r["cxr_id"]: r["labels"]
        for r in parts(tiny_store, of(tiny_store, "manifest", split="weak"), "manifest").to_pylist()
    }
    stored = {r["cxr_id"]: r["rle"] for r in parts(tiny_store, record, "masks/").to_pylist()}
    pixels = differing = 0
    for row in parts(tiny_store, of(tiny_store, "cams"), "cams/weak/").to_pylist():
        cam = np.frombuffer(row["cam"], dtype=np.float16).reshape(10, 4, 4).astype(np.float32)
        big = F.interpolate(torch.from_numpy(cam)[None], size=(64, 64), mode="bilinear", align_corners=False)[0].numpy()
        scale = 64 / max(row["height"], row["width"])
        height, width = round(row["height"] * scale), round(row["width"] * scale)
        top, left = (64 - height) // 2, (64 - width) // 2
        for k in range(10):
            expected = np.zeros((64, 64), dtype=bool)
            inner = big[k, top : top + height, left : left + width]
            if labels[row["cxr_id"]][k] == 1 and inner.max() > inner.min():
                scores = (inner - inner.min()) / (inner.max() - inner.min())
                expected[top : top + height, left : left + width] = scores > thresholds[k]
            mask = coco.decode({"size": [64, 64], "counts": stored[row["cxr_id"]][k].encode()}).astype(bool)
            pixels += expected.sum()
            differing += (mask != expected).sum()
            assert expected.any() == mask.any() or abs(int(expected.sum()) - int(mask.sum())) <= 1
    assert pixels > 1000
    assert differing <= 1e-3 * pixels, "torch and Pillow differ in the last bit, on a threshold's edge alone"


def test_counts_are_those_of_the_trained_network_on_the_mask_file(tiny_store: Path, phantom_root: Path) -> None:
    """Rebuilt from the weights, the JPEG and the test JSON with smp, torch and pycocotools."""
    import torch
    import torch.nn.functional as F
    from PIL import Image
    from pycocotools import mask as coco

    from chexseg_ray.stages.networks import load_segmentation

    evaluation = of(tiny_store, "evaluation")
    record = next(r for r in records(tiny_store).values() if r.fingerprint == evaluation.inputs["segmentation"])
    model, _ = load_segmentation(Store.open(str(tiny_store)), record)
    names = record.config["pathologies"]
    truth = json.loads((phantom_root / "CheXlocalize" / "gt_segmentations_test.json").read_text())
    counts = parts(tiny_store, evaluation, "counts").to_pandas().set_index(["cxr_id", "pathology", "resolution"])
    assert len(counts) == len(truth) * 10 * 2
    off = total = 0
    for cxr_id, masks in truth.items():
        with Image.open(phantom_root / "CheXpert-v1.0" / "test" / (cxr_id.replace("_", "/", 2) + ".jpg")) as image:
            width, height = image.size
            scale = 64 / max(height, width)
            inner_h, inner_w = round(height * scale), round(width * scale)
            top, left = (64 - inner_h) // 2, (64 - inner_w) // 2
            canvas = Image.new("L", (64, 64))
            canvas.paste(image.resize((inner_w, inner_h), Image.Resampling.BILINEAR), (left, top))
        x = torch.from_numpy(np.array(canvas, dtype=np.float32) / 255).expand(1, 3, 64, 64)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        with torch.no_grad():
            scores = model((x - mean.view(3, 1, 1)) / std.view(3, 1, 1)).sigmoid()
        inner = scores[:, :, top : top + inner_h, left : left + inner_w]
        big = F.interpolate(inner, size=(height, width), mode="bilinear", align_corners=False)[0].numpy()
        for k, name in enumerate(names):
            mask = coco.decode({"size": masks[name]["size"], "counts": masks[name]["counts"].encode()}).astype(bool)
            predicted = big[k] > record.metrics["thresholds"][name]["threshold"]
            row = counts.loc[(cxr_id, name, "original")]
            assert row["truth"] == mask.sum()
            off += abs(int(row["predicted"]) - int(predicted.sum()))
            off += abs(int(row["intersection"]) - int((predicted & mask).sum()))
            total += int(predicted.sum())
    assert total > 1000
    assert off <= 2e-3 * total, "batch composition moves the last bits"


def test_the_predictions_of_the_chosen_model_evaluated_by_chexlocalizes_rules_give_our_per_image(
    tiny_store: Path, phantom_root: Path
) -> None:
    import csv

    prediction = of(tiny_store, "prediction")
    store = Store.open(str(tiny_store))
    found = json.loads(store.read(prediction, "predictions.json"))
    truth = json.loads((phantom_root / "CheXlocalize" / "gt_segmentations_test.json").read_text())
    assert found.keys() == truth.keys(), "every image"
    names = list(tiny(tiny_store).data.pathologies)
    for cxr_id, entry in found.items():
        assert list(entry) == names, "every pathology"
        assert all(entry[name]["size"] == truth[cxr_id][name]["size"] for name in names), "full size"
    evaluated = next(
        r for r in records(tiny_store).values() if r.name == "evaluation" and r.inputs == prediction.inputs
    )
    with (tiny_store / "report" / "tiny" / "results.csv").open() as stream:
        rows = [r for r in csv.DictReader(stream) if r["record"] == evaluated.address and r["pathology"] != "mean"]
    for aggregation, only in (("per_image", False), ("per_image_true_pos_only", True)):
        ours = {r["pathology"]: float(r["iou"] or "nan") for r in rows if r["aggregation"] == aggregation}
        for name in names:
            theirs = mean_iou(found, truth, name, only)
            assert np.isnan(ours[name]) or ours[name] == pytest.approx(theirs, rel=1e-12), (
                "undefined for us where no truth has a pixel"
            )
        assert np.isfinite(list(ours.values())).sum() > (0 if only else 4)
    masks = parts(tiny_store, prediction, "masks/")
    counts = parts(tiny_store, evaluated, "counts").to_pandas()
    for row in masks.to_pylist():
        pixels = counts[(counts.cxr_id == row["cxr_id"]) & (counts.resolution == "model")].set_index("pathology")
        for name, rle in zip(names, row["rle"], strict=True):
            assert decode_rle(Rle(64, 64, rle)).sum() == pixels.loc[name, "predicted"]


def test_permuted_test_masks_change_what_is_measured_and_nothing_that_is_chosen(store_copy: Path, job: Job) -> None:
    """The masks of each test image change places among the pathologies.

    The sweep then makes everything again that it makes from the test split.
    """

    def chosen() -> dict[str, tuple[str, str, float]]:
        config = tiny(store_copy)
        study, _ = load_study(config)
        store = Store.open(str(store_copy))
        found = choose(study, store.find_all(study.steps()))
        return {kind: (best.point.label, best.segmentation.address, best.score) for kind, best in found.items()}

    def measured() -> list[str]:
        return [
            line
            for line in (store_copy / "report" / "tiny" / "results.csv").read_text().splitlines()
            if ",mean," in line
        ]

    before, results, weights = chosen(), measured(), stamps(store_copy)
    path = next(store_copy.glob("phantom/*/*/CheXlocalize/gt_segmentations_test.json"))
    masks = json.loads(path.read_text())
    permuted = {
        cxr_id: dict(zip(entry, [*list(entry.values())[1:], next(iter(entry.values()))], strict=True))
        for cxr_id, entry in masks.items()
    }
    path.write_text(json.dumps(permuted))
    relist(store_copy, path)
    for record in records(store_copy).values():
        if record.name in ("evaluation", "benchmark", "prediction") or record.config.get("split") == "test":
            shutil.rmtree(store_copy / record.address)
    done = job("sweep.py", str(TINY), f"store.root={store_copy}")
    assert done.returncode == 0, done.stderr
    assert measured() != results
    assert chosen() == before
    assert {p: s for p, s in stamps(store_copy).items() if "/segmentation/" in p} == {
        p: s for p, s in weights.items() if "/segmentation/" in p
    }
    assert of(store_copy, "prediction").inputs["segmentation"] == before["semi-supervised"][1].rsplit("/", 1)[1]


def test_the_second_reader_is_counted_as_a_prediction_is(tiny_store: Path, phantom_root: Path) -> None:
    reader = json.loads((phantom_root / "CheXlocalize" / "hb_segmentations_test.json").read_text())
    truth = json.loads((phantom_root / "CheXlocalize" / "gt_segmentations_test.json").read_text())
    counts = read_counts(
        parts(tiny_store, of(tiny_store, "benchmark"), "counts"), list(tiny(tiny_store).data.pathologies)
    )
    for only in (True, False):
        ours = per_image_iou(counts.original, only)
        theirs = [mean_iou(reader, truth, name, only) for name in tiny(tiny_store).data.pathologies]
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert np.nanmean(pooled_iou(counts.model)) > 0.5


def test_parquet_is_plain_for_other_readers(tiny_store: Path) -> None:
    for record in records(tiny_store).values():
        for entry in record.files:
            if entry.path.endswith(".parquet"):
                schema = pq.read_schema(tiny_store / record.address / record.attempt / entry.path)
                assert not [f for f in schema if f.metadata and b"ARROW:extension:name" in f.metadata]


def test_a_record_says_how_it_was_made(tiny_store: Path) -> None:
    record = of(tiny_store, "segmentation")
    assert set(record.metrics["thresholds"]) == set(record.config["pathologies"])
    assert {c["source"] for c in record.metrics["thresholds"].values()} <= {"validation", "expert_train", "default"}
    assert record.run["device"] == "cpu"
    assert record.run["threads"] == 1
    assert {"torch", "ray"} <= set(record.run["versions"])
    classifier = of(tiny_store, "classifier", architecture="resnet18")
    assert record.inputs["encoder"] == classifier.fingerprint
    json.dumps(record.metrics, allow_nan=False)
    assert tiny(tiny_store).sweep.p == (0.5,)
