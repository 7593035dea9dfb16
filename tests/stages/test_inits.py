"""Every encoder initialisation, architecture and annotation budget through the sweep; trainings that workers share."""

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from studies import TINY, Job, the_error, tiny

from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.data.images import ContentBox, content_box
from chexseg_ray.engine.execution import make_execution
from chexseg_ray.engine.replicas import Replica
from chexseg_ray.engine.shards import Batch, ImageShards
from chexseg_ray.engine.training_state import from_safetensors
from chexseg_ray.pretraining.encoders import build_encoder, read_encoder
from chexseg_ray.pretraining.moco import build_moco, draw_batch, moco_update
from chexseg_ray.stages.moco import Settings
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store
from chexseg_ray.study.sources import load_study
from chexseg_ray.sweep.build import build

pytestmark = pytest.mark.ray
StartRay = Callable[[], None]


def build_one(config: StudyConfig, name: str, start_ray: StartRay, **wanted: object) -> Record:
    """Build a step of a study by its name and values of its config."""
    study, source = load_study(config)
    step = next(s for s in study.steps() if s.name == name and all(s.config[k] == v for k, v in wanted.items()))
    store = Store.open(config.store.root)
    return build(step, store, make_execution(config, source, start_ray))


def weights(store: Path, record: Record) -> dict[str, torch.Tensor]:
    return from_safetensors(Store.open(str(store)).read(record, "weights.safetensors"))[0]


@pytest.fixture(scope="module")
def inits(tiny_store: Path, job: Job, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """Run a study with every init, two architectures and two budgets, which learns nothing at a rate of 1e-12.

    Returns:
        Its store, the folder of its files of weights, and the arguments of its command.
    """
    from torchvision import models

    folder = tmp_path_factory.mktemp("inits")
    store = Path(shutil.copytree(tiny_store, folder / "store"))
    torch.manual_seed(11)
    torch.save(models.resnet18(weights=None).state_dict(), folder / "imagenet.pth")
    moco_cxr = {
        f"module.encoder_q.{name}": tensor for name, tensor in models.resnet18(weights=None).state_dict().items()
    }
    torch.save({"arch": "resnet18", "state_dict": moco_cxr}, folder / "r8w-00001.pth.tar")
    arguments = [
        str(TINY),
        f"store.root={store}",
        f"sweep.init=[random, imagenet, moco, chexpert, {folder / 'r8w-00001.pth.tar'}]",
        "sweep.p=[1.0]",
        "sweep.trials=1",
        "sweep.also=[{init: [random], num_expert: [3, 5]}]",
        f"pretraining.imagenet_files={{resnet18: {folder / 'imagenet.pth'}}}",
        "segmentation.architecture=[deeplabv3plus, unet]",
        "segmentation.learning_rate=1e-12",
        "segmentation.num_updates=2",
    ]
    done = job("sweep.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return store, folder, arguments


def boxes_of(batch: Batch) -> list[ContentBox]:
    return [content_box(*sample.original, sample.pixels.shape[0]) for sample in batch.samples]


def rows(store: Path) -> list[dict[str, str]]:
    with (store / "report" / "tiny" / "results.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_every_init_and_network_is_a_row_of_the_report_and_names_what_it_began_with(
    inits: tuple[Path, Path, list[str]],
) -> None:
    store, folder, _ = inits
    found = {(r["init"], r["architecture"], r["encoder"], r["num_expert"]) for r in rows(store) if r["trial"] == "0"}
    names = ("random", "imagenet", "moco", "chexpert", str(folder / "r8w-00001.pth.tar"))
    assert found == {(i, a, "resnet18", "all") for i in names for a in ("deeplabv3plus", "unet")} | {
        ("random", a, "resnet18", n) for a in ("deeplabv3plus", "unet") for n in ("3", "5")
    }
    page = (store / "report" / "tiny" / "index.html").read_text()
    assert "14 of 14 points" in page
    assert "r8w-00001.pth.tar" in page
    assert "unet/resnet18" in page
    assert "What the next expert mask is worth" in page
    assert (store / "report" / "tiny" / "miou_over_num_expert.png").is_file()


def test_each_network_begins_with_its_inits_weights_and_statistics(inits: tuple[Path, Path, list[str]]) -> None:
    store, folder, arguments = inits
    study, _ = load_study(tiny(store, *arguments[2:]))
    opened = Store.open(str(store))
    files = {"imagenet": folder / "imagenet.pth", str(folder / "r8w-00001.pth.tar"): folder / "r8w-00001.pth.tar"}
    statistics = {"random": "imagenet", "imagenet": "imagenet", "moco": "chexpert", "chexpert": "imagenet"}
    learned = {name for name, _ in build_encoder("resnet18").named_parameters()}
    for point, step in study.points:
        training = step.inputs["segmentation"]
        record = opened.find(training)
        assert record is not None
        assert record.metrics["normalisation"] == statistics.get(point.init, "chexpert")
        assert record.config["architecture"] == point.architecture
        if point.init == "random":
            assert record.metrics["encoder"] == {"source": "random", "normalisation": "imagenet"}
            continue
        made = opened.find(training.inputs["encoder"])
        assert made is not None
        assert record.metrics["encoder"]["record"] == made.address
        data = files[point.init].read_bytes() if point.init in files else opened.read(made, "weights.safetensors")
        expected = read_encoder(data, build_encoder("resnet18"), "resnet18").state
        for name, tensor in weights(store, record).items():
            if name.startswith("encoder.") and name.removeprefix("encoder.") in learned:
                assert torch.allclose(tensor, expected[name.removeprefix("encoder.")], atol=1e-9), (point.label, name)
        if point.init in files:
            assert record.metrics["encoder"]["sha256"] == hashlib.sha256(data).hexdigest()
            assert made.metrics["loaded"] == 120


def test_a_budget_trains_and_tunes_on_its_own_masks(inits: tuple[Path, Path, list[str]]) -> None:
    store, _, arguments = inits
    study, _ = load_study(tiny(store, *arguments[2:]))
    found = {
        p.num_expert: Store.open(str(store)).find(s.inputs["segmentation"])
        for p, s in study.points
        if p.init == "random"
    }
    assert {n: record.metrics["expert_ids"] for n, record in found.items() if record and n is not None} == {3: 3, 5: 5}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "sweep.init=[chexprt]",
            "sweep.init=chexprt: is not a file that can be read: name random, imagenet, moco or chexpert",
        ),
        ("sweep.init=[imagenet]", "resnet18-f37072fd.pth"),
        ("sweep.init=[{folder}/other.pth]", "encoder weights do not fit"),
        ("classifier.init=/nowhere.pth", "classifier.init=/nowhere.pth: is not a file"),
        ("segmentation.architecture=unett", "smp has no architecture 'unett'"),
        ("segmentation.encoder=resnet81", "'resnet81'"),
    ],
)
def test_what_cannot_begin_ends_with_one_line_before_anything_is_trained(
    override: str, message: str, tmp_path: Path, job: Job
) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    done = job("sweep.py", str(TINY), f"store.root={tmp_path / 'store'}", override.format(folder=tmp_path))
    assert done.returncode == 2
    assert message in the_error(done.stderr)
    assert not list((tmp_path / "store").glob("*/*/record.json"))


def test_moco_is_the_plain_loop_over_its_update(store_copy: Path, private_ray: StartRay) -> None:
    config = tiny(store_copy, "sweep.init=[moco]", "sweep.p=[1.0]", "moco.milestones=[2]", "compute.moco.threads=1")
    record = build_one(config, "moco", private_ray)
    store = Store.open(str(store_copy))
    manifest = store.find_address(f"manifest/{record.inputs['manifest_weak']}")
    images = store.find_address(f"images/{record.inputs['images_weak']}")
    assert manifest is not None
    assert images is not None
    assert record.rows == images.rows
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = Settings(**record.config)
    model = build_moco(settings).train()
    ids = store.read_table(manifest, "manifest.parquet", ["cxr_id"]).column("cxr_id").to_pylist()
    shards = ImageShards(store, [images], 64, dict.fromkeys(ids, np.zeros(0, dtype=np.int8)))
    optimiser = torch.optim.Adam(model.query.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    for update, batch in zip(range(4), shards.batches(4, 0, 0), strict=False):
        optimiser.param_groups[0]["lr"] = 1e-3 * (0.1 if update >= 2 else 1)
        pixels = torch.from_numpy(batch.pixels)
        drawn = draw_batch(pixels, boxes_of(batch), settings, update, Replica(0, 1))
        loss, _ = moco_update(model, optimiser, drawn, settings, lambda network, x, _: network(x), Replica(0, 1))
    torch.set_num_threads(threads)
    found = weights(store_copy, record)
    assert found.keys() == model.query.encoder.state_dict().keys(), "the head stays behind"
    for name, tensor in model.query.encoder.state_dict().items():
        assert torch.equal(found[name], tensor), name
    assert record.metrics["history"][-1]["loss"] == pytest.approx(float(loss))


SHARED = "{num_workers: 2, num_cpus: 1, num_gpus: 0, threads: 1}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "architecture"), [("moco", "resnet18"), ("classifier", "resnet18")])
def test_two_workers_train_what_one_process_trains_for_two_replicas(
    name: str, architecture: str, store_copy: Path, private_ray: StartRay
) -> None:
    section = "moco" if name == "moco" else "encoder_classifier"
    base = (
        f"sweep.init=[{'moco' if name == 'moco' else 'chexpert'}]",
        "sweep.p=[1.0]",
        f"{section}.num_replicas=2",
        f"{section}.num_updates=3",
        "classifier.num_replicas=2",
        f"compute.{name}.threads=1",
    )
    alone = build_one(tiny(store_copy, *base), name, private_ray, architecture=architecture)
    one = weights(store_copy, alone)
    shutil.rmtree(store_copy / alone.address)
    together = build_one(
        tiny(store_copy, *base, f"compute.{name}={SHARED}"), name, private_ray, architecture=architecture
    )
    assert together.address == alone.address, "where a training runs is not its identity"
    assert (alone.run["workers"], together.run["workers"]) == (1, 2)
    for key, tensor in weights(store_copy, together).items():
        assert torch.allclose(tensor, one[key], rtol=1e-2, atol=2e-3), key


@pytest.mark.slow
def test_points_with_worker_groups_run_in_the_sweep_before_the_others(
    tiny_store: Path, tmp_path: Path, job: Job
) -> None:
    store = Path(shutil.copytree(tiny_store, tmp_path / "store"))
    arguments = [
        str(TINY),
        f"store.root={store}",
        "sweep.init=[random]",
        "sweep.p=[0.5, 1.0]",
        "sweep.trials=1",
        "sweep.weak_n=[4, 8]",
        "segmentation.num_replicas=2",
        "segmentation.num_updates={4: 2, 8: 3}",
        "segmentation.batch_size=4",
        "compute.segmentation={num_workers: {4: 0, 8: 2}, num_cpus: {4: 1, 8: 0.5}, num_gpus: 0, threads: 1}",
    ]
    done = job("sweep.py", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    study, _ = load_study(tiny(store, *arguments[2:]))
    opened = Store.open(str(store))
    found = {point.weak_n: opened.find(step.inputs["segmentation"]) for point, step in study.points}
    assert {n: record.run["workers"] for n, record in found.items() if record} == {8: 2, 4: 1, 0: 1}
    lines = [line for line in done.stdout.splitlines() if "sweep: points" in line]
    assert "weak_n=8" in lines[0], lines
    config = tiny(store, *arguments[2:], "compute.segmentation={num_workers: 0, num_cpus: 1, num_gpus: 0, threads: 1}")
    point, step = next((p, s) for p, s in study.points if p.weak_n == 8)
    shared = weights(store, found[8])
    shutil.rmtree(store / step.inputs["segmentation"].address)
    alone = build(step.inputs["segmentation"], opened, make_execution(config, None, lambda: None))
    for key, tensor in weights(store, alone).items():
        assert torch.allclose(tensor, shared[key], rtol=1e-2, atol=2e-3), (point.label, key)
    assert alone.run["workers"] == 1
    assert json.loads((store / alone.address / "record.json").read_text())["fingerprint"] == found[8].fingerprint
