"""Steps, records and the store."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.store.step import Record, Step, canonical_json, differing_fields
from chexseg_ray.store.store import Store


def record_of(step: Step, attempt: str, files: tuple = ()) -> Record:
    inputs = {role: child.fingerprint for role, child in step.inputs.items()}
    return Record(step.name, step.version, step.fingerprint, dict(step.config), inputs, attempt, files, 1, 0, {}, {})


def stores(tmp_path: Path) -> list[Store]:
    (tmp_path / "sub").mkdir()
    mock = pafs._MockFileSystem()
    tree = pafs.SubTreeFileSystem(str(tmp_path / "sub"), pafs.LocalFileSystem())
    return [
        Store.open(str(tmp_path / "local")),
        Store(mock, "bucket/study", "mock://bucket/study"),
        Store(tree, "study", "tree://study"),
    ]


def test_canonical_json_has_one_form_and_refuses_what_has_none() -> None:
    assert canonical_json({"b": 1.0, "a": [None, True, "é"]}) == '{"a":[null,true,"\\u00e9"],"b":1.0}'
    for bad in (float("nan"), float("inf"), {1: 2}, {"a": {1, 2}}, Path(), b"x"):
        with pytest.raises(TypeError):
            canonical_json(bad)


def test_a_fingerprint_is_of_name_version_config_and_inputs() -> None:
    base = Step("a", 1, {"x": 1})
    others = [
        Step("b", 1, {"x": 1}),
        Step("a", 2, {"x": 1}),
        Step("a", 1, {"x": 2}),
        Step("a", 1, {"x": 1}, {"i": base}),
    ]
    assert len({s.fingerprint for s in [base, *others]}) == 5
    assert base.fingerprint == Step("a", 1, {"x": 1}).fingerprint
    assert len(base.fingerprint) == 12


def test_a_step_is_built_when_its_record_is_there_on_every_file_system(tmp_path: Path) -> None:
    for store in stores(tmp_path):
        step = Step("a", 1, {"x": 1})
        attempt = store.new_attempt(step)
        entries = (attempt.write("part/one.bin", b"abc"), attempt.write_table("t.parquet", pa.table({"v": [1, 2]})))
        assert store.find(step) is None, "files without a record are nothing"
        store.commit(record_of(step, attempt.name, entries))
        found = store.find(step)
        assert found is not None
        assert store.read(found, "part/one.bin") == b"abc"
        assert store.read_table(found, "t.parquet").column("v").to_pylist() == [1, 2]
        assert [r.fingerprint for r in store.records("a")] == [step.fingerprint]


def test_a_record_that_does_not_parse_is_absent(tmp_path: Path) -> None:
    for store in stores(tmp_path):
        step = Step("a", 1, {"x": 1})
        good = record_of(step, "t").to_json()
        for bad in (b"", good[: len(good) // 2], b"[]", b"\xff\xfe", json.dumps({"name": "a"}).encode()):
            store.put(f"{step.address}/record.json", bad)
            assert store.find(step) is None
        store.put(f"{step.address}/record.json", good)
        assert store.find(step) is not None


def test_an_orphan_attempt_changes_nothing(tmp_path: Path) -> None:
    store = stores(tmp_path)[0]
    step = Step("a", 1, {"x": 1})
    winner, orphan = store.new_attempt(step), store.new_attempt(step)
    store.commit(record_of(step, winner.name, (winner.write("f", b"good"),)))
    orphan.write("f", b"late")
    orphan.write("g", b"late")
    found = store.find(step)
    assert found is not None
    assert store.read(found, "f") == b"good"
    with pytest.raises(InputError, match="lists no g"):
        store.read(found, "g")


def test_a_lost_or_cut_file_is_named(tmp_path: Path) -> None:
    store = stores(tmp_path)[0]
    step = Step("a", 1, {"x": 1})
    attempt = store.new_attempt(step)
    record = record_of(step, attempt.name, (attempt.write("f", b"four"),))
    store.commit(record)
    store.put(f"{step.address}/{attempt.name}/f", b"fo")
    with pytest.raises(InputError, match="2 bytes, the record lists 4"):
        store.read(record, "f")
    store.put(f"{step.address}/{attempt.name}/f", b"fouR")
    with pytest.raises(InputError, match=r"its bytes are not those that the record lists: delete /\S+ and run again"):
        store.read(record, "f")
    store.delete(f"{step.address}/{attempt.name}/f")
    with pytest.raises(InputError, match="is gone"):
        store.read(record, "f")


def test_a_failed_write_leaves_no_file_under_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores(tmp_path)[0]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TransientError, match="No space left"):
        store.put("a/b", b"data")
    assert not (tmp_path / "local" / "a" / "b").exists()


def test_a_miss_explains_itself_by_the_nearest_record() -> None:
    old = Step("a", 1, {"x": 1, "y": 1, "z": 1})
    new = Step("a", 1, {"x": 1, "y": 2, "z": 1})
    far = replace(old, config={"x": 5, "y": 5, "z": 5})
    assert differing_fields(new, [record_of(far, "t"), record_of(old, "t")]) == (old.fingerprint, ["y"])
    assert differing_fields(new, []) is None
    assert differing_fields(replace(old, version=2), [record_of(old, "t")]) == (old.fingerprint, ["version 1 -> 2"])


def test_a_root_that_is_a_file_or_lies_below_one_is_refused_by_the_users_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for root in ("file", "file/a/b"):
        with pytest.raises(InputError, match=f"^--out={tmp_path}/{root}: {tmp_path}/file is a file: name a folder"):
            Store.open(f"{tmp_path}/{root}", "--out")
    with pytest.raises(InputError, match=r"^store\.root=file://"):
        Store.open(f"file://{tmp_path}/file")
    assert Store.open(f"{tmp_path}/new/folder").names("") == []


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(InputError, match="nosuch"):
        Store.open("nosuch://bucket")


def test_names_that_are_not_utf_8_are_passed_over(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/images")
    os.mkdir(os.fsencode(tmp_path) + b"/images/\xff")
    (tmp_path / "images" / "a").mkdir()
    assert Store.open(str(tmp_path)).names("images") == ["a"]
