"""IRNet in the study: what it builds, that it equals the plain loop, replicas, weights from files, and its refusals."""

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from studies import IRNET, TINY, Job, the_error, tiny
from two_processes import Result, run_as_two

from chexseg_ray.config.resources import ActorCompute, WorkerCompute
from chexseg_ray.data.images import content_box
from chexseg_ray.data.normalisation import network_input
from chexseg_ray.engine.execution import make_execution
from chexseg_ray.engine.launch import run_training
from chexseg_ray.engine.replicas import Replica
from chexseg_ray.engine.shards import ImageShards
from chexseg_ray.engine.tables import binary_column, split_cams
from chexseg_ray.engine.train import NanLossError, Report, TrainingJob
from chexseg_ray.errors import InputError
from chexseg_ray.pseudo.affinity import irnet_losses
from chexseg_ray.pseudo.ir_labels import ir_labels
from chexseg_ray.pseudo.irnet import IRNet, irnet_update
from chexseg_ray.pseudo.pairs import PairLabels
from chexseg_ray.stages.irnet import Settings, load_irnet, training_sample
from chexseg_ray.stages.propagation import PropagationActor
from chexseg_ray.stages.propagation import Settings as PropagationSettings
from chexseg_ray.store.step import Record, Step
from chexseg_ray.store.store import Attempt, Store
from chexseg_ray.study.sources import load_study
from chexseg_ray.sweep.build import build

StartRay = Callable[[], None]


def step_of(store: Path, name: str, *overrides: str) -> Step:
    study, _ = load_study(tiny(store, IRNET, *overrides))
    return next(s for s in study.steps() if s.name == name and s.config.get("method", "irnet") == "irnet")


def record_of(store: Path, name: str, *overrides: str) -> Record:
    record = Store.open(str(store)).find(step_of(store, name, *overrides))
    assert record is not None
    return record


def build_here(store: Path, name: str, start_ray: StartRay, *overrides: str) -> Record:
    config = tiny(store, IRNET, *overrides)
    _, source = load_study(config)
    opened = Store.open(str(store))
    return build(step_of(store, name, *overrides), opened, make_execution(config, source, start_ray))


def usable(store: Store, step: Step) -> dict[str, np.ndarray]:
    """Of the weak images with a label 1 whose CAM is not zero: int8 [K]."""
    cams, manifest = (store.find(step.inputs[role]) for role in ("cams", "manifest_weak"))
    assert cams is not None
    assert manifest is not None
    labels = {r["cxr_id"]: r["labels"] for r in store.read_tables(manifest, "manifest").to_pylist()}
    out = {}
    for path in cams.paths("cams/weak/"):
        table, maps = split_cams(store.read_table(cams, path))
        for cxr_id, cam in zip(table.column("cxr_id").to_pylist(), maps, strict=True):
            target = np.array(
                [label == 1 and m.any() for label, m in zip(labels[cxr_id], cam, strict=True)], dtype=np.int8
            )
            if target.any():
                out[cxr_id] = target
    return out


@pytest.mark.ray
def test_a_sweep_extended_by_irnet_builds_what_irnet_needs_and_nothing_else(
    tiny_store: Path, irnet_store: Path
) -> None:
    before, after = (
        {p.parent.parent.name + "/" + p.parent.name for p in s.glob("*/*/record.json")}
        for s in (tiny_store, irnet_store)
    )
    # A prediction is made anew only if IRNet's masks give a better model, which this test leaves open.
    new = sorted(address.split("/")[0] for address in after - before if not address.startswith("prediction/"))
    assert new == ["evaluation"] * 2 + ["irnet", "propagation", "pseudo_masks"] + ["segmentation"] * 2
    record = record_of(irnet_store, "irnet")
    assert record.metrics["encoder"] == {"source": "random", "normalisation": "imagenet"}
    used = usable(Store.open(str(irnet_store)), step_of(irnet_store, "irnet"))
    assert record.metrics["images_used"] == len(used) == record.rows
    assert record.metrics["images_without_target"] > 0
    page = (irnet_store / "report" / "tiny" / "index.html").read_text()
    assert "irnet" in page
    assert "4 of 4 points" in page


@pytest.mark.ray
def test_propagation_equals_the_plain_loop_bitwise(irnet_store: Path) -> None:
    store = Store.open(str(irnet_store))
    step = step_of(irnet_store, "propagation")
    record, irnet, cams = (store.find(s) for s in (step, step.inputs["irnet"], step.inputs["cams"]))
    assert record is not None
    assert irnet is not None
    assert cams is not None
    threads = torch.get_num_threads()
    settings = PropagationSettings(**record.config)
    actor = PropagationActor(Attempt(store, "none", "none"), irnet, settings, ActorCompute())
    for split in record.config["splits"]:
        images = store.find(step.inputs[f"images_{split}"])
        assert images is not None
        for part in images.paths("images/"):
            pixels = binary_column(store.read_table(images, part), "pixels", np.uint8, (64, 64))
            path = part.replace("images/", f"cams/{split}/")
            table, maps = split_cams(store.read_table(cams, path))
            boxes = [content_box(r["height"], r["width"], 64) for r in table.to_pylist()]
            written, found = split_cams(store.read_table(record, path))
            assert np.array_equal(found, actor.map(pixels, maps, boxes))
            assert written.equals(table), "ids, sizes and probabilities are the CAMs' own"
            assert found.shape[2:] == (16, 16)
            assert set(np.unique(found.max(axis=(2, 3)))) <= {0.0, 1.0}
            assert not found[maps.max(axis=(2, 3)) == 0].any()
    torch.set_num_threads(threads)


@pytest.mark.ray
def test_thresholds_of_irnet_masks_are_tuned_on_expert_training_masks(irnet_store: Path) -> None:
    record = record_of(irnet_store, "pseudo_masks")
    assert {choice["source"] for choice in record.metrics["thresholds"].values()} <= {"expert_train", "all", "default"}
    assert "expert_train" in {choice["source"] for choice in record.metrics["thresholds"].values()}
    assert all(choice["threshold"] > 0 for choice in record.metrics["thresholds"].values())
    assert sum(record.metrics["nonempty_masks"].values()) > 0


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_train_what_one_process_trains(irnet_copy: Path, private_ray: StartRay) -> None:
    store = Store.open(str(irnet_copy))
    alone, _ = load_irnet(store, record_of(irnet_copy, "irnet"))
    shutil.rmtree(irnet_copy / "irnet")
    record = build_here(
        irnet_copy, "irnet", private_ray, "compute.irnet={num_workers: 2, num_cpus: 1, num_gpus: 0, threads: 1}"
    )
    together, _ = load_irnet(store, record)
    assert record.run["workers"] == 2
    for name, tensor in together.state_dict().items():
        assert torch.allclose(tensor, alone.state_dict()[name], rtol=1e-3, atol=1e-5), name


@pytest.mark.ray
def test_the_displacement_branch_and_instance_wise_cams_by_config(irnet_copy: Path, private_ray: StartRay) -> None:
    overrides = (
        "irnet.displacement=true",
        "irnet.instance_wise=true",
        "irnet.num_updates=2",
        "irnet.loss_weights=halves",
    )
    record = build_here(irnet_copy, "pseudo_masks", private_ray, *overrides)
    assert record.rows == record_of(irnet_copy, "pseudo_masks").rows
    irnet = record_of(irnet_copy, "irnet", *overrides)
    assert irnet.metrics["history"][-1]["foreground_displacement"] > 0
    model, facts = load_irnet(Store.open(str(irnet_copy)), irnet)
    assert facts["displacement"] is True
    assert model.branches["displacement"].mean.abs().max() > 0, "the mean shift is set"


@pytest.mark.ray
def test_the_training_is_sgd_with_polynomial_decay_and_a_tenfold_rate_for_the_displacement(
    irnet_copy: Path, private_ray: StartRay
) -> None:
    """Against a plain loop with its own update rule, labels and mean shift."""
    overrides = (
        "irnet.displacement=true",
        "irnet.num_updates=3",
        "irnet.weight_decay=0.01",
        "irnet.learning_rate=0.05",
    )
    record = build_here(irnet_copy, "irnet", private_ray, *overrides)
    store, step = Store.open(str(irnet_copy)), step_of(irnet_copy, "irnet", *overrides)
    images, cams = store.find(step.inputs["images_weak"]), store.find(step.inputs["cams"])
    assert images is not None
    shards = ImageShards(store, [images], 64, usable(store, step), cams)
    torch.manual_seed(step.config["seed"])
    model = IRNet(displacement=True).train()
    for update, batch in zip(range(3), shards.batches(4, step.config["seed"], 0), strict=False):
        pixels, labels = training_sample(batch, Settings(**step.config), update, Replica(0, 1))
        logits, field = model(network_input(pixels, "imagenet"))
        losses = irnet_losses(logits.sigmoid(), field, PairLabels(labels, 10))
        names, parameters = zip(*model.branches.named_parameters(), strict=True)
        gradients = torch.autograd.grad(losses.boundary + losses.foreground + losses.background, parameters)
        with torch.no_grad():
            for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
                rate = 0.05 * (1 - update / 3) ** 0.9 * (10 if name.startswith("displacement") else 1)
                parameter -= rate * (gradient + 0.01 * parameter)
    model.eval()
    ways = []
    for batch in shards.in_order(1):
        (one,) = batch.samples
        grid = ir_labels(one.cams, one.target == 1, content_box(*one.original, 64).on_grid(64, 16), 16, 0.3, 0.05)
        with torch.no_grad():
            field = model(network_input(torch.from_numpy(one.pixels[None]), "imagenet"))[1]
        ways.append(field[0][:, torch.from_numpy((grid == 1).any(axis=0))])
    built, _ = load_irnet(store, record)
    for name, tensor in model.branches.state_dict().items():
        expected = torch.cat(ways, dim=1).mean(dim=1) if name == "displacement.mean" else tensor
        assert torch.allclose(built.branches.state_dict()[name], expected, rtol=1e-3, atol=1e-5), name


@pytest.mark.ray
def test_encoder_weights_from_a_file_are_in_the_network_and_in_the_record(
    irnet_copy: Path, tmp_path: Path, private_ray: StartRay
) -> None:
    from torchvision.models import resnet50

    torch.manual_seed(5)
    weights = resnet50(weights=None).state_dict()
    file = tmp_path / "resnet50.pth"
    torch.save(weights, file)
    record = build_here(irnet_copy, "irnet", private_ray, f"irnet.encoder={file}", "irnet.num_updates=1")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    made = f"encoder/{record.inputs['encoder']}"
    facts = {
        "source": str(file),
        "sha256": sha256,
        "record": made,
        "loaded": len(weights) - 2,
        "normalisation": "imagenet",
    }
    assert record.metrics["encoder"] == facts
    model, _ = load_irnet(Store.open(str(irnet_copy)), record)
    for name, tensor in model.trunk.layers.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    moved = file.rename(tmp_path / "elsewhere.pth")
    again = step_of(irnet_copy, "irnet", f"irnet.encoder={moved}", "irnet.num_updates=1")
    assert again.fingerprint == record.fingerprint, "the file's content is its identity, not its place"


@pytest.mark.ray
@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("imagenet", "resnet50-"),
        ("/nowhere/resnet50.pth", "is not a file that can be read"),
        ("{folder}/text.pth", "no weights can be read"),
        ("{folder}/other.pth", "do not fit"),
    ],
)
def test_encoder_weights_that_cannot_be_had_end_with_one_line_before_anything_is_built(
    encoder: str, message: str, tmp_path: Path, job: Job
) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    override = f"irnet.encoder={encoder.format(folder=tmp_path)}"
    done = job("sweep.py", str(TINY), f"store.root={tmp_path / 'store'}", IRNET, override)
    assert done.returncode == 2
    assert not list((tmp_path / "store").glob("*/*/record.json"))
    assert message in the_error(done.stderr)
    if encoder == "imagenet":
        assert "/checkpoints/resnet50-" in done.stderr, "the file to provide"


@pytest.mark.ray
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["irnet.batch_size=4000"], "fewer than one batch of 4000"),
        (["irnet.learning_rate=1e38", "irnet.num_updates=5"], "lower irnet.learning_rate"),
    ],
)
def test_a_training_that_cannot_be_says_why(
    overrides: list[str], message: str, irnet_copy: Path, private_ray: StartRay
) -> None:
    with pytest.raises((InputError, NanLossError), match=message):
        build_here(irnet_copy, "irnet", private_ray, *overrides)


@pytest.mark.ray
def test_a_fault_of_one_replica_alone_ends_the_training_with_its_line(tmp_path: Path, private_ray: StartRay) -> None:
    """The other one waits for it in an all_reduce."""
    config = tiny(tmp_path, IRNET)
    store = Store.open(str(tmp_path))
    step = step_of(tmp_path, "irnet")
    job = TrainingJob(Settings(**step.config), {}, store.new_attempt(step), 1, 60.0, "irnet")

    def loop(job: TrainingJob, report: Report) -> None:
        replica = Replica.here()
        if replica.rank == 1:
            raise InputError("rank 1 cannot use its share")
        replica.sum_([torch.zeros(1)])

    compute, execution = WorkerCompute(num_workers=2, threads=1), make_execution(config, None, private_ray)
    start = time.monotonic()
    with pytest.raises(InputError, match="rank 1 cannot use its share"):
        run_training(loop, job, compute, execution, "one-faulty")
    assert time.monotonic() - start < 300, "not until a time-out of half an hour"


def sample() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 255], size=(4, 3, 8, 8)).astype(np.uint8)
    labels[0, 1] = labels[1, 1] = 255  # a pathology that one replica alone has
    return torch.from_numpy(rng.integers(0, 256, (4, 32, 32), dtype=np.uint8)), torch.from_numpy(labels)


def one_update(replica: Replica) -> dict[str, torch.Tensor]:
    """Losses and gradients of one update in float64 on this replica's share."""
    torch.manual_seed(0)
    model = IRNet(displacement=True).double().train()
    optimiser = torch.optim.SGD(model.parameter_groups(0.1), lr=0.1)
    pixels, labels = sample()
    rows = replica.share(4)
    losses = irnet_update(model, optimiser, pixels[rows], labels[rows], 4, "sum", "imagenet", replica.sum_)
    gradients = {name: p.grad for name, p in model.branches.named_parameters() if p.grad is not None}
    return {"losses": losses.double(), **gradients}


def one_named_update(replica: Replica) -> dict[str, Result]:
    return {"irnet": one_update(replica)}


def test_two_replicas_have_the_loss_and_gradient_of_one_process_in_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run_as_two(one_named_update, tmp_path, monkeypatch)
    whole = one_update(Replica(0, 1))
    assert whole["losses"].min() > 0
    for rank in (0, 1):
        result = found[rank]["irnet"]
        assert result.keys() == whole.keys()
        for name, tensor in whole.items():
            assert torch.allclose(result[name], tensor, rtol=1e-9, atol=1e-13), name
