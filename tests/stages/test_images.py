"""The decoding of a study's images without Ray: DICOM beside JPEG and PNG, notes, rejects."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest
from data.dicom_files import made
from data.image_files import image_bytes
from studies import TINY

from chexseg_ray.config.parse import load_config
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.data.images import FEW_GREYS
from chexseg_ray.data.masks import encode_rle
from chexseg_ray.engine.execution import Task
from chexseg_ray.engine.source_tables import SourceTables
from chexseg_ray.errors import InputError
from chexseg_ray.stages import images
from chexseg_ray.stages.images import DecodeGroup
from chexseg_ray.stages.manifest import Settings, describe_masks, select_rows
from chexseg_ray.store.filesystem import Source
from chexseg_ray.study.graph import study_graph

DEEP = np.random.default_rng(0).integers(0, 4096, (40, 30)).astype(np.uint16)
CSV = "Path,Frontal/Lateral,Edema\n"
ALL = ("weak_csv", "expert_csv", "expert_masks", "test_csv", "test_masks", "benchmark_masks")


class NoFiles:
    """An attempt that keeps tables in memory."""

    def __init__(self) -> None:
        self.tables: dict[str, Any] = {}

    def write_table(self, name: str, table: Any) -> str:
        self.tables[name] = table
        return name


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A root with a PNG, the same X-ray as DICOM, a dark one, an MR image, and masks."""
    (tmp_path / "valid" / "p").mkdir(parents=True)
    for name, data in {
        "a.png": image_bytes((DEEP // 16).astype(np.uint8)),
        "b.dcm": made(DEEP, WindowCenter=2048, WindowWidth=4096),
        "c.png": image_bytes(DEEP),
        "d.dcm": made(DEEP, Modality="MR"),
    }.items():
        (tmp_path / "valid" / "p" / name).write_bytes(data)
    return Source(pafs.LocalFileSystem(), str(tmp_path))


def rows(*names: str) -> list[dict[str, Any]]:
    nothing = {"height": None, "width": None, "rle_original": None}
    return [{"cxr_id": f"p_{name[0]}", "path": f"valid/p/{name}", **nothing} for name in names]


def decoded(source: Source, *names: str, allowed: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a group's decoding returns, and the tables that it writes."""
    attempt = NoFiles()
    decode = DecodeGroup(attempt, source, ".", ["Edema"], 32, allowed)  # type: ignore[arg-type]
    return decode(0, rows(*names)), attempt.tables


def test_dicom_is_decoded_as_prediction_does_and_images_are_noted_and_rejected(source: Source) -> None:
    result, tables = decoded(source, "a.png", "b.dcm", "c.png", "d.dcm")
    assert result["rows"] == 3
    assert [(reject["cxr_id"], reject["reason"]) for reject in result["rejects"]] == [("p_d", "modality")]
    assert result["notes"] == [("p_c", FEW_GREYS)]
    table = next(iter(tables.values()))
    first, second = (np.frombuffer(pixels.as_py(), np.uint8) for pixels in table["pixels"][:2])
    assert np.abs(first.astype(int) - second).max() <= 1
    assert decoded(source, "d.dcm", allowed=("MR",))[0]["rows"] == 1


def test_the_records_metrics_have_notes_only_if_there_are_any(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def made_of(*names: str) -> Any:
        manifest = SimpleNamespace(config={"pathologies": ["Edema"]}, rows=len(names))
        store = SimpleNamespace(read_table=lambda *_: None)
        execution = SimpleNamespace(
            start_ray=lambda: None,
            files={"weak_csv": "train.csv"},
            compute=SimpleNamespace(images=SimpleNamespace(num_cpus=1)),
            max_reject_fraction=0.01,
        )
        step = SimpleNamespace(config={"split": "weak", "size": 32})
        task = SimpleNamespace(step=step, inputs={"manifest": manifest}, execution=execution, store=store)
        task.attempt, task.open_source = NoFiles(), lambda: source
        monkeypatch.setattr(images, "row_groups", lambda _: [rows(*names)])
        monkeypatch.setattr(images, "run_tasks", lambda *args: [args[3](0, group) for group in args[2]])
        monkeypatch.setattr(images, "write_rejects", lambda *_: "rejects.parquet")
        monkeypatch.setattr(images, "files_of", lambda _: [])
        found: Task = task  # type: ignore[assignment]
        return images.make(found)

    assert made_of("a.png", "b.dcm").metrics == {}
    noted = made_of("a.png", "c.png")
    assert noted.metrics == {"notes": {FEW_GREYS: {"images": 1, "first": ["p_c"]}}}


def test_an_expert_image_of_another_modality_is_refused_with_the_remedy() -> None:
    execution = SimpleNamespace(allow_expert_rejects=False, max_reject_fraction=0.01)
    task: Any = SimpleNamespace(execution=execution)
    reject = {"cxr_id": "p_d", "path": "d.dcm", "stage": "images", "reason": "modality"}
    for split in ("test", "weak"):
        with pytest.raises(InputError, match=r"d\.dcm modality.*data\.allow_modalities"):
            images._refuse_too_many(task, split, 1, [reject])


def the_config(*overrides: str) -> StudyConfig:
    return load_config(TINY, ["data.root=data", "data.phantom=null", *overrides])


def test_allowed_modalities_are_hashed_in_one_order_and_only_if_there_are_any() -> None:
    hashes = dict.fromkeys(ALL, "0")

    def addresses(*overrides: str) -> list[str]:
        steps = study_graph(the_config(*overrides), hashes).steps()
        return [step.address for step in steps if step.name == "images"]

    assert addresses() == addresses("data.allow_modalities=[]")
    assert addresses("data.allow_modalities=[OT, MR]") == addresses("data.allow_modalities=[MR, OT]") != addresses()
    for bad in ("[mr]", "[MR, MR]", "[x y]", "MR"):
        with pytest.raises(InputError, match="allow_modalities"):
            the_config(f"data.allow_modalities={bad}")


def expert(source: Source, names: tuple[str, ...], columns: str = CSV, view: str = "Frontal,") -> Settings:
    """Write CSV and masks of images, and return the settings of their validation split."""
    rle = {"Edema": {"size": [40, 30], "counts": encode_rle(np.eye(40, 30, dtype=bool))}}
    lines = [f"valid/p/{name},{view}1" for name in names]
    Path(source.base, "valid.csv").write_text(columns + "\n".join(lines) + "\n")
    Path(source.base, "m.json").write_text(json.dumps({f"p_{name[0]}": rle for name in names}))
    return Settings(split="validation", pathologies=["Edema"], views=["frontal"], num_validation=1)


FILES = {"expert_csv": "valid.csv", "expert_masks": "m.json", "test_csv": "t.csv", "test_masks": "t.json"}


def test_masks_of_dicom_images_are_compared_with_the_size_in_their_header(source: Source) -> None:
    settings = expert(source, ("a.png", "b.dcm"))
    other = Path(source.base, "valid", "q", "e.dcm")
    other.parent.mkdir()
    other.write_bytes(made(DEEP))
    text = Path(source.base, "valid.csv").read_text() + "valid/q/e.dcm,Frontal,1\n"
    Path(source.base, "valid.csv").write_text(text)
    masks = Path(source.base, "m.json").read_text()
    Path(source.base, "m.json").write_text(masks.replace('"p_b"', '"q_e"'))
    table, found = select_rows(SourceTables(), source, FILES, settings)
    assert len(table) == 1
    assert describe_masks(table, found, settings) == ["masks of validation (1 images; mean area): Edema 1 (2.5 %)"]
    for path in (other, Path(source.base, "valid", "p", "b.dcm")):
        path.write_bytes(made(DEEP[:20]))
    Path(source.base, "valid", "p", "a.png").write_bytes(image_bytes(DEEP[:20]))
    with pytest.raises(InputError, match="its masks are 40 x 30 pixels, the image 20 x 30"):
        select_rows(SourceTables(), source, FILES, settings)


def test_without_pydicom_a_study_of_dicom_is_refused_in_a_line(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = expert(source, ("a.png", "b.dcm"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"b\.dcm: a DICOM file needs pydicom: .*chexseg-ray\[dicom\]"):
        select_rows(SourceTables(), source, FILES, settings)


def test_a_view_that_nothing_tells_is_refused_if_only_one_is_used(source: Source) -> None:
    settings = expert(source, ("a.png", "c.png"), "Path,Edema\n", "")
    rule = (
        r"valid\.csv row 2: Path 'valid/p/a\.png' does not say frontal or lateral, and no column does: name the column"
    )
    with pytest.raises(InputError, match=rule):
        select_rows(SourceTables(), source, FILES, settings)
    weak = Settings(split="weak", pathologies=["Edema"], views=["frontal"])
    both = Settings(split="weak", pathologies=["Edema"], views=["frontal", "lateral"])
    with pytest.raises(InputError, match="does not say frontal or lateral"):
        select_rows(SourceTables(), source, {"weak_csv": "valid.csv"}, weak)
    table, _ = select_rows(SourceTables(), source, {"weak_csv": "valid.csv"}, both)
    assert list(table["view"]) == ["frontal"] * 2


def test_empty_masks_of_a_pathology_that_labels_say_is_there_are_refused(source: Source) -> None:
    settings = expert(source, ("a.png", "b.dcm", "c.png"))
    text = Path(source.base, "m.json").read_text()
    empty = encode_rle(np.zeros((40, 30), dtype=bool))
    Path(source.base, "m.json").write_text(text.replace(encode_rle(np.eye(40, 30, dtype=bool)), empty))
    with pytest.raises(InputError, match=r"m\.json and valid\.csv: all masks of 'Edema' are empty, but 3 of these"):
        select_rows(SourceTables(), source, FILES, settings)
