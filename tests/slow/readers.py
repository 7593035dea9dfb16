"""Every reader of the package, with small valid files that are made here, and what must hold of what it accepts.

A reader's `read` takes bytes. It raises one of `REFUSALS`, or returns `accepted` or `none` (where None is the rule).
Anything else is a fault. `whole` readers are of files that are compared with a hash: they accept nothing but the file.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pydicom
import torch
from data.dicom_files import compressed, lut, made
from data.image_files import image_bytes
from PIL import Image
from pretraining.torch_files import saved
from studies import TINY

from chexseg_ray.config.parse import load_config, parse_config
from chexseg_ray.data.chexpert import read_csv, read_paths
from chexseg_ray.data.images import ImageError
from chexseg_ray.data.masks import decode_rle, encode_rle, exchange_entry, exchange_json, read_mask_json
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.data.phantom import csv_text, plan_phantom
from chexseg_ray.data.xrays import decode_xray, xray_size
from chexseg_ray.engine.training_state import Progress, StateKeeper, to_safetensors
from chexseg_ray.errors import InputError, TransientError, without_credentials
from chexseg_ray.pretraining.encoders import read_encoder
from chexseg_ray.progress import one_line
from chexseg_ray.store.step import Record, Step
from chexseg_ray.store.store import Attempt, Store

REFUSALS = (InputError, TransientError, ImageError)
MOST_CHARACTERS = 3000  # of a message
IMAGES = Step("images", 1, {"size": 32})
STEP = Step("evaluation", 1, {"size": 32, "rate": 0.5}, {"images": IMAGES})

Read = Callable[[bytes], str]


class Reader:
    """A reader.

    Args:
        folder: an empty folder of its own.
    """

    valid = 1  # the first of its seeds that it must accept; the others need only be of its form
    most_memory = 600_000_000  # bytes that the process may use beyond what it has at its start
    most_seconds = 5.0  # of CPU for one file

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seeds: list[bytes] = []

    def read(self, data: bytes) -> str:
        """Read a file; see the module."""
        raise NotImplementedError

    def store(self) -> Store:
        """A store in the folder."""
        return Store.open(str(self.folder / "store"))


def check_message(error: BaseException) -> None:
    """What a job would print is one line of a bearable length, without credentials."""
    line = one_line(without_credentials(f"error: {error}"))
    assert len(line) <= MOST_CHARACTERS, f"a message of {len(line)} characters: {line[:200]}"
    assert "\n" not in str(error), f"a message of several lines: {error}"
    assert "KEY" not in line, f"a message with a key: {line[:200]}"


class Config(Reader):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        tiny = TINY.read_bytes()
        short = b"".join(tiny.splitlines(keepends=True)[:45])
        anchors = b"a: &a [1, 2]\nb: {c: *a, <<: {d: 1e-3}}\nsweep: {p: [0, .5], also: [{p: [1]}]}\n"
        self.seeds = [tiny, tiny, short, anchors, json.dumps({"sweep": {"p": [0.5]}}).encode()]

    def read(self, data: bytes) -> str:
        path = self.folder / "study.yaml"
        path.write_bytes(data)
        load_config(path)
        return "accepted"


class Override(Reader):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seeds = [
            b"sweep.p=[0, 0.5, 1]",
            b"compute.segmentation={num_workers: 0, num_gpus: 0.5, threads: 1}",
            b"compute.rates.images={weak: 3, test: 4}",
            b"data.phantom.seed=3",
            b"sweep.also=[{p: [1], init: [random]}]",
            b"irnet.rescale=[0.5, 1.5]",
            b"store.root=s3://bucket/store?region=eu",
            b"pretraining.imagenet_files={resnet18: /a/b.pth}",
        ]
        self.text = TINY.read_text()

    def read(self, data: bytes) -> str:
        parse_config(self.text, [data.decode(errors="surrogateescape")], "tiny.yaml")
        return "accepted"


class Csv(Reader):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        images = plan_phantom(2, 2, 2, seed=0)
        texts = [csv_text(images, split) for split in ("train", "valid", "test")]
        named = "image,who,view,Edema\na/1.png,p1,Frontal,1\nb/2.png,p2,lateral,0\n"
        listed = "Path\na.png\n/data/b.dcm\n"
        self.seeds = [text.encode() for text in (*texts, texts[0].replace("\n", "\r\n"), "\ufeff" + texts[1])]
        self.seeds += [named.encode(), listed.encode()]
        self.named = {"Path": ["image"], "Patient": ["who"], "Frontal/Lateral": ["view"]}

    def read(self, data: bytes) -> str:
        found = 0
        attempts: list[Callable[[], Any]] = [
            lambda: read_csv(data, "train.csv", PATHOLOGIES),
            lambda: read_csv(data, "named.csv", ["Edema"], self.named),
            lambda: read_paths(data, "list.csv"),
        ]
        last: Exception = InputError("no attempt")
        for attempt in attempts:
            try:
                table = attempt()
            except REFUSALS as error:
                check_message(error)
                last = error
                continue
            found += 1
            if not isinstance(table, list):
                assert table["cxr_id"].is_unique
                assert not table[["path", "patient_id"]].isna().any(axis=None)
        if not found:
            raise last
        return "accepted"


class Masks(Reader):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        rng = np.random.default_rng(0)
        names = ["Edema", "Airspace Opacity"]
        rle = {f"patient{i}": exchange_entry(names, rng.random((2, 20, 30)) > 0.7) for i in range(3)}
        contour = [[[3.0, 4.0], [25, 6.5], [12, 18]], [[1, 1], [5, 1], [5, 9], [1, 9]]]
        drawn = {f"patient{i}": {"img_size": [20, 30], "Edema": contour, "Lung Opacity": []} for i in range(3)}
        full = {"a": exchange_entry(PATHOLOGIES, np.zeros((len(PATHOLOGIES), 8, 9), dtype=bool))}
        self.names = names
        self.seeds = [exchange_json(rle).encode(), json.dumps(drawn).encode(), exchange_json(full).encode()]

    def read(self, data: bytes) -> str:
        for image in read_mask_json(data, "masks.json", self.names).values():
            for rle in image.values():
                if rle.height * rle.width < 100_000:
                    mask = decode_rle(rle)
                    assert mask.shape == (rle.height, rle.width)
                    assert (decode_rle(type(rle)(rle.height, rle.width, encode_rle(mask))) == mask).all()
        return "accepted"


class XRays(Reader):
    most_memory = 1_500_000_000  # an image of 100 million pixels is allowed

    def read(self, data: bytes) -> str:
        xray_size(data[:4096])
        xray_size(data)
        image = decode_xray(data)
        assert image.grey.dtype == np.uint8
        assert image.grey.ndim == 2
        assert image.grey.size
        assert all(len(one_line(note)) < 1000 for note in image.notes)
        return "accepted"


class Pictures(XRays):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        rng = np.random.default_rng(0)
        grey = Image.fromarray(rng.integers(0, 256, (24, 20), dtype=np.uint8))
        deep = Image.fromarray(rng.integers(0, 65536, (24, 20), dtype=np.uint16))
        turned = Image.Exif()
        turned[0x0112] = 6
        self.seeds = [
            image_bytes(grey, "PNG"),
            image_bytes(deep, "PNG"),
            image_bytes(grey.convert("P"), "PNG", transparency=3),
            image_bytes(grey.convert("RGBA"), "PNG"),
            image_bytes(grey.convert("1"), "PNG"),
            image_bytes(grey, "JPEG"),
            image_bytes(grey, "JPEG", exif=turned),
            image_bytes(grey.convert("RGB"), "JPEG", progressive=True),
            image_bytes(grey.convert("CMYK"), "JPEG"),
        ]


class Dicom(XRays):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        rng = np.random.default_rng(0)
        values = rng.integers(0, 4096, (16, 12)).astype(np.uint16)
        jpeg = image_bytes(Image.fromarray((values[:, :] >> 4).astype(np.uint8)), "JPEG")
        plain = made(values, WindowCenter="2000", WindowWidth="1000")
        dataset = pydicom.dcmread(io.BytesIO(plain))
        stream = io.BytesIO()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        dataset.save_as(stream, implicit_vr=True, little_endian=True)
        compact = pydicom.dcmread(io.BytesIO(plain))
        compact.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        rle = io.BytesIO()
        compact.save_as(rle)
        self.seeds = [
            plain,
            made(values, "MONOCHROME1", PixelPaddingValue=0, RescaleSlope="2", RescaleIntercept="-10"),
            made(values, VOILUTSequence=lut(list(range(0, 4096, 16)), 0, 12)),
            compressed(jpeg, pydicom.uid.JPEGBaseline8Bit, (16, 12)),
            stream.getvalue(),
            rle.getvalue(),
            plain[plain.index(b"\x08\x00\x16\x00", 200) :],  # without a meta header
        ]


class Checkpoints(Reader):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        state = self.network.state_dict()
        facts = {"model": json.dumps({"architecture": "tiny", "pathologies": ["Edema", "Lung Lesion"]})}
        whole = {"epoch": 2, "state_dict": {f"model.{name}": tensor for name, tensor in state.items()}}
        self.seeds = [saved(value, new=new) for value in (state, whole) for new in (True, False)]
        self.seeds += [to_safetensors(state, facts), to_safetensors(state)]

    def read(self, data: bytes) -> str:
        try:
            weights = read_encoder(data, self.network, "tiny", ["Edema", "Lung Lesion"])
        except ValueError as error:  # as the stage `encoder` does
            raise InputError(f"weights.pth: {error}: name a file of tiny weights") from None
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.state.values())
        return "accepted"


TABLE = pa.table({"cxr_id": ["a", "b"], "pixels": [b"12", b"34"], "intersection": [[1, 2], [3, 4]]})


def build(store: Store, step: Step, old: bool = False) -> Record:
    """Commit a step with one table; `old` writes a record without a hash, as old versions did."""
    attempt = Attempt(store, step.address, "0123abcd")  # the same in every process
    entry = attempt.write_table("part.parquet", TABLE)
    inputs = {role: child.fingerprint for role, child in step.inputs.items()}
    metrics: dict[str, Any] = {"threshold": 0.35, "by_number": {"2": 0.1}, "none": None, "history": [{"update": 3}]}
    run = {"seconds": 1.5, "host": "here", "versions": {"torch": "2"}}
    record = Record(
        step.name, 1, step.fingerprint, dict(step.config), inputs, attempt.name, (entry,), 2, 0, metrics, run
    )
    store.commit(record)
    if old:
        store.put(f"{step.address}/record.json", json.dumps(asdict(record), indent=1, sort_keys=True).encode())
    return record


class Records(Reader):
    """record.json: what is found is what was written, whatever was changed."""

    old = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        build(self.store(), IMAGES)
        build(self.store(), STEP, self.old)
        self.path = self.folder / "store" / STEP.address / "record.json"
        self.seeds = [self.path.read_bytes()]
        found = self.store().find(STEP)
        assert found is not None
        self.expected = {**asdict(found), "run": None}

    def read(self, data: bytes) -> str:
        from chexseg_ray.report.explain import explanation, find_records

        self.path.write_bytes(data)
        found = self.store().find(STEP)
        if found is None:
            return "none"
        if not self.old and {**asdict(found), "run": None} != self.expected:
            assert "sha256" not in json.loads(data)["run"], "a changed record is found"
        for line in explanation(find_records(STEP.address, self.store().root)):
            one_line(line)
        return "accepted"


class OldRecords(Records):
    """record.json of an old version, which has no hash: types only."""

    old = True


class Tables(Reader):
    """A Parquet file that a record lists."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.record = build(self.store(), IMAGES)
        self.path = self.folder / "store" / IMAGES.address / self.record.attempt / "part.parquet"
        self.good = self.path.read_bytes()
        self.seeds = [self.good]

    def read(self, data: bytes) -> str:
        import chexseg_ray.store.store as module

        module._COMPARED.clear()  # as a new process
        self.path.write_bytes(data)
        for columns in (None, ["cxr_id"]):
            try:
                table = self.store().read_table(self.record, "part.parquet", columns)
            except REFUSALS:
                if data == self.good:
                    raise AssertionError("the file itself is refused") from None
                if columns:
                    raise
                continue
            assert data == self.good, "a changed table is read"
            assert table.equals(TABLE if columns is None else TABLE.select(columns))
        return "accepted"


class States(Reader):
    """The saved state of a training: a changed one is passed over, and the one before it is used."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.network, self.optimiser = self._fresh()
        self.keeper = StateKeeper(Attempt(self.store(), STEP.address, "0123abcd"), 0.0)
        for update in (1, 2):
            self.network(torch.ones(1, 3)).sum().backward()
            self.optimiser.step()
            self.keeper.save(self.network, self.optimiser, Progress(update, update, 0.5, [{"update": update}]))
        self.states = self.folder / "store" / STEP.address / "state"
        self.newest = sorted(self.states.iterdir())[-1]
        self.good = self.newest.read_bytes()
        self.seeds = [self.good, self.newest.name.encode()]

    @staticmethod
    def _fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 2)
        return network, torch.optim.Adam(network.parameters())

    def read(self, data: bytes) -> str:
        self.newest.write_bytes(data)
        odd = self.states / data[:60].decode(errors="replace").replace("/", "-").replace("\0", "-").strip(".")
        is_other = odd.name not in ("state", self.newest.name) and len(odd.name.encode()) < 250 and not odd.exists()
        if is_other:
            odd.write_bytes(data)
        try:
            network, optimiser = self._fresh()
            progress = self.keeper.load(network, optimiser)
        finally:
            if is_other:
                odd.unlink()
        assert progress.update == (2 if data == self.good else 1), f"update {progress.update}"
        return "accepted" if data == self.good else "none"


class Models(Reader):
    """The card of an exported model: the network that it asks for is built."""

    most_memory = 1_500_000_000
    most_seconds = 60.0  # a card may ask for any network of smp

    def __init__(self, folder: Path) -> None:
        import segmentation_models_pytorch as smp

        from chexseg_ray.predict.card import FORMAT, WEIGHTS

        super().__init__(folder)
        network: dict[str, Any] = {
            "arch": "Linknet",
            "encoder_name": "tu-lcnet_035",
            "encoder_weights": None,
            "classes": 2,
        }
        torch.manual_seed(0)
        weights = to_safetensors(smp.create_model(**network).state_dict(), {"format": "pt"})
        card = {
            "format": FORMAT,
            "notice": "n",
            "smp": network,
            "pathologies": ["Edema", "Lung Lesion"],
            "thresholds": [0.5, 0.25],
            "threshold_sources": ["tuned", "fixed"],
            "normalisation": "imagenet",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.2, 0.2, 0.2],
            "size": 64,
            "input": "grey",
            "trained_on": {
                "expert_masks": 3,
                "pseudo_masks": 4,
                "pseudo_mask_method": "gradcam",
                "p": 0.5,
                "encoder_initialisation": "random",
                "data": {"weak_csv": "00"},
                "licence": "CC BY 4.0",
            },
            "validation_miou": 0.1,
            "record": "segmentation/0123456789ab",
            "versions": {"torch": "2"},
            "sha256": hashlib.sha256(weights).hexdigest(),
        }
        self.weights, self.card = weights, card
        (folder / "model").mkdir()
        (folder / "model" / WEIGHTS).write_bytes(weights)
        self.seeds = [json.dumps(card, indent=1).encode(), json.dumps(card).encode()]

    def read(self, data: bytes) -> str:
        (self.folder / "model" / "model.json").write_bytes(data)
        return self._open()

    def _open(self) -> str:
        from chexseg_ray.predict.card import open_model
        from chexseg_ray.predict.model import describe, load_model

        model = load_model(str(self.folder / "model"))
        segmenter = open_model(model)
        assert len(segmenter.pathologies) == len(model.card["thresholds"])
        for line in describe(model.card):
            assert len(one_line(line)) < MOST_CHARACTERS
        return "accepted"


class Weights(Models):
    """The weights of an exported model, whose card has the hash of the changed file: only their head is damaged."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.end = 8 + int.from_bytes(self.weights[:8], "little") + 64
        self.seeds = [self.weights[: self.end]]

    def read(self, data: bytes) -> str:
        whole = data + self.weights[self.end :]
        card = {**self.card, "sha256": hashlib.sha256(whole).hexdigest()}
        (self.folder / "model" / "model.json").write_text(json.dumps(card))
        (self.folder / "model" / "model.safetensors").write_bytes(whole)
        return self._open()


class Results(Reader):
    """A report's results.csv, and the records that a row of it leads to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        build(self.store(), IMAGES)
        build(self.store(), STEP)
        head = "method,init,p,weak_n,trial,pathology,aggregation,iou,low,high,record"
        rows = [
            f"gradcam,chexpert,0.5,8,0,Edema,pooled,0.25,,,{STEP.address}",
            "gradcam,chexpert,0.5,8,,Edema,pooled,0.25,0.1,0.4,",
            f"gradcam,chexpert,0.5,8,1,mean,per_image,,,,{STEP.address}",
        ]
        self.seeds = ["\n".join([head, *rows, ""]).encode(), "\r\n".join([head, *rows, ""]).encode()]
        self.path = self.folder / "store" / "report" / "tiny" / "results.csv"
        self.path.parent.mkdir(parents=True)

    def read(self, data: bytes) -> str:
        from chexseg_ray.report.explain import explanation, find_records

        self.path.write_bytes(data)
        found, last = 0, None
        for line in (1, 2, 3, 4, 9):
            try:
                for text in explanation(find_records(f"{self.path}:{line}", None)):
                    one_line(text)
                found += 1
            except REFUSALS as error:
                check_message(error)
                last = error
        try:
            [*explanation(find_records(data[:200].decode(errors="surrogateescape"), self.store().root))]
        except REFUSALS as error:
            check_message(error)
        if not found and last:
            raise last
        return "accepted"


class Names(Reader):
    """Folders and files of any name, and of any kind, in a store."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for step in (IMAGES, STEP):
            build(self.store(), step)
        self.expected = {step.address: self.store().find(step) for step in (IMAGES, STEP)}
        self.seeds = [
            b"images/0123456789ab/record.json",
            b"images/record.json",
            f"{IMAGES.address}/x/record.json".encode(),
            f"{STEP.address}/state/000000001-aaaaaaaa-0123456789abcdef".encode(),
            b"evaluation/aaaaaaaaaaaa/failed.json",
            b"report/tiny/results.csv",
        ]
        self.valid = 0  # they are names of any kind

    def read(self, data: bytes) -> str:
        parts = [part for part in data[:400].replace(b"\0", b"").split(b"/") if part not in (b"", b".", b"..")]
        if not parts:
            return "none"
        parts = [part[:200].decode(errors="surrogateescape") for part in parts[:6]]
        target = self.folder.joinpath("store", *parts)
        made: list[Path] = []
        try:
            for path in reversed([target.parent, *target.parent.parents]):
                if not path.exists():
                    path.mkdir()
                    made.append(path)
            if target.exists():
                return "none"
            kind = len(data) % 3
            if kind == 0:
                target.mkdir()
            elif kind == 1:
                target.symlink_to(target)
            else:
                target.write_bytes(data)
            made.append(target)
            return self._look()
        except (FileExistsError, NotADirectoryError):
            return "none"  # below a file
        finally:
            for path in reversed(made):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    def _look(self) -> str:
        from chexseg_ray.report.explain import explanation, find_records

        store = self.store()
        assert store.find_all([STEP, IMAGES]) == self.expected
        for name in ("images", "evaluation"):
            found = {record.address: record for record in store.records(name)}
            assert {address for address in self.expected if address.startswith(name)} <= found.keys()
            for fingerprint in store.names(name):
                store.failure(Step(name, 1, {"of": fingerprint.encode(errors="replace").decode()}))
        [*explanation(find_records(STEP.address, store.root))]
        return "accepted"


class Failures(Reader):
    """failed.json, which explains why a step is not built."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        step = Step("evaluation", 1, {"size": 64})
        try:
            raise InputError("update 3: loss is nan")
        except InputError as error:
            self.store().put_failure(step, error)
        self.step, self.path = step, self.folder / "store" / step.address / "failed.json"
        self.seeds = [self.path.read_bytes()]

    def read(self, data: bytes) -> str:
        self.path.write_bytes(data)
        text = self.store().failure(self.step)
        assert isinstance(text, str)
        one_line(text)
        return "accepted"


class Bootstrap(Reader):
    """The file in which `ray up` describes a cluster."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.config = load_config(TINY)
        text = """
cluster_name: small
max_workers: 3
head_node_type: head
available_node_types:
  head: {resources: {CPU: 4}, node_config: {}}
  gpu: {resources: {CPU: 8, GPU: 1}, min_workers: 0, max_workers: 2, node_config: {InstanceType: g5.xlarge}}
  cpu: {resources: {CPU: 16}, node_config: {}}
"""
        self.seeds = [text.encode(), text.replace("max_workers: 2, ", "").encode()]

    def read(self, data: bytes) -> str:
        from chexseg_ray.cluster import nodes

        path = self.folder / "ray_bootstrap_config.yaml"
        path.write_bytes(data)
        with mock.patch.multiple(nodes, _BOOTSTRAP=path, nodes=lambda: [{"CPU": 4.0}]):
            may_come = nodes.growth(self.config)
        assert len(may_come) <= 100_000
        assert all(isinstance(amount, int | float) for node in may_come for amount in node.values())
        return "accepted"


READERS: dict[str, type[Reader]] = {
    "config": Config,
    "override": Override,
    "csv": Csv,
    "masks": Masks,
    "pictures": Pictures,
    "dicom": Dicom,
    "checkpoint": Checkpoints,
    "record": Records,
    "old record": OldRecords,
    "table": Tables,
    "state": States,
    "card": Models,
    "weights": Weights,
    "results": Results,
    "names": Names,
    "failure": Failures,
    "bootstrap": Bootstrap,
}

# damaged files of each in `make test`, some ten seconds in all
FEW = {
    "config": 12,
    "override": 12,
    "csv": 20,
    "masks": 300,
    "pictures": 200,
    "dicom": 100,
    "checkpoint": 200,
    "record": 100,
    "old record": 100,
    "table": 100,
    "state": 30,
    "card": 8,
    "weights": 4,
    "results": 25,
    "names": 60,
    "failure": 100,
    "bootstrap": 20,
}
