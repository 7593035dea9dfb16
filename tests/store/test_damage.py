"""A changed byte of a store is found, whichever byte it is (faults.md 22)."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from chexseg_ray.errors import InputError
from chexseg_ray.store.step import Record, Step
from chexseg_ray.store.store import Store

STEP = Step("counts", 1, {"size": 32, "rate": 0.5}, {"images": Step("images", 1, {"size": 32})})
TABLE = pa.table({"cxr_id": ["a", "b"], "pixels": [b"12", b"34"], "intersection": [[1, 2], [3, 4]]})


@pytest.fixture
def built(tmp_path: Path) -> tuple[Store, Record]:
    store = Store.open(str(tmp_path))
    attempt = store.new_attempt(STEP)
    entry = attempt.write_table("part.parquet", TABLE)
    inputs = {role: step.fingerprint for role, step in STEP.inputs.items()}
    metrics: dict[str, Any] = {"threshold": 0.35, "by_number": {2: 0.1, 10: 0.2}, "none": None}
    run = {"seconds": 1.5, "host": "here"}
    record = Record(
        STEP.name, 1, STEP.fingerprint, dict(STEP.config), inputs, attempt.name, (entry,), 2, 0, metrics, run
    )
    store.commit(record)
    return store, record


def bent(data: bytes, seed: int = 0) -> Iterator[bytes]:
    """The bytes with one bit flipped, at every place."""
    draw = random.Random(seed)
    for place, byte in enumerate(data):
        yield data[:place] + bytes([byte ^ (1 << draw.randrange(8))]) + data[place + 1 :]


def fresh(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store as a new process sees it."""
    monkeypatch.setattr("chexseg_ray.store.store._COMPARED", set())
    return store


@pytest.mark.parametrize("columns", [None, ["cxr_id"]])
def test_one_flipped_bit_of_a_table_is_found_wherever_it_is(
    built: tuple[Store, Record], columns: list[str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, record = built
    path = Path(store.path(f"{record.address}/{record.attempt}/part.parquet"))
    for data in bent(path.read_bytes()):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"its bytes are not .*: delete \S+ and run again$"):
            fresh(store, monkeypatch).read_table(record, "part.parquet", columns)


def test_a_file_that_breaks_after_it_was_compared_is_named_too(built: tuple[Store, Record]) -> None:
    store, record = built
    assert store.read_table(record, "part.parquet", ["cxr_id"]).column_names == ["cxr_id"]
    path = Path(store.path(f"{record.address}/{record.attempt}/part.parquet"))
    good = path.read_bytes()
    for data in (good[:-9] + b"\0" * 9, b"", b"no parquet"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"delete .* and run again"):
            store.read_table(record, "part.parquet", ["cxr_id"])


def test_later_reads_of_columns_do_not_read_the_file_whole(
    built: tuple[Store, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, record = built
    whole = []
    read = store.read
    monkeypatch.setattr(store, "read", lambda record, path: whole.append(path) or read(record, path))
    for _ in range(3):
        assert fresh_columns(store, record) == TABLE.column("cxr_id").to_pylist()
    assert whole == ["part.parquet"]


def fresh_columns(store: Store, record: Record) -> list[str]:
    ids: list[str] = store.read_table(record, "part.parquet", ["cxr_id"]).column("cxr_id").to_pylist()
    return ids


def test_one_flipped_bit_of_a_record_makes_it_no_record(built: tuple[Store, Record]) -> None:
    store, record = built
    path = Path(store.path(f"{record.address}/record.json"))
    good = path.read_bytes()
    expected = store.find(STEP)
    assert expected is not None
    assert expected == replace(record, metrics=json.loads(json.dumps(record.metrics)))
    accepted = 0
    for data in bent(good):
        path.write_bytes(data)
        found = store.find(STEP)
        if found is not None:  # a bit of the name `sha256` was flipped, or of a blank between two fields
            assert replace(found, run={}) == replace(expected, run={})
            accepted += 1
    assert accepted < 40, "nearly all are no records"


def changed(good: dict[str, Any], **fields: Any) -> bytes:
    """A record.json without a hash, as old versions wrote it, with other values."""
    run = {key: value for key, value in good["run"].items() if key != "sha256"}
    return json.dumps({**good, "run": run, **fields}).encode()


def test_a_record_of_an_old_version_has_no_hash_and_is_read(built: tuple[Store, Record]) -> None:
    store, record = built
    path = f"{record.address}/record.json"
    store.put(path, changed(json.loads(store.get(path))))
    assert store.find(STEP) is not None


def test_a_whole_record_of_another_step_is_not_this_ones(built: tuple[Store, Record]) -> None:
    """As in a store whose folders were copied by hand."""
    store, record = built
    other = Step(STEP.name, 1, {"size": 64, "rate": 0.5})
    store.put(f"{other.address}/record.json", record.to_json())
    assert store.find(STEP) is not None
    assert store.find(other) is None
    assert store.find_all([other, STEP]).keys() == {STEP.address}


@pytest.mark.parametrize(
    "fields",
    [
        {"rows": {"a": 1}},
        {"rows": True},
        {"rows": -1},
        {"rows": 10**400},
        {"files": [{"path": "a", "size": 2**63, "sha256": ""}]},
        {"version": "1"},
        {"metrics": []},
        {"run": "now"},
        {"files": {}},
        {"files": [{"path": "a", "size": "1", "sha256": ""}]},
        {"files": [{"path": "a", "size": 1, "sha256": "", "more": 1}]},
        {"files": [{"path": "a", "size": 1, "sha256": ""}] * 2},
        {"files": [{"path": "a\0b", "size": 1, "sha256": ""}]},
        {"files": [{"path": "../a", "size": 1, "sha256": ""}]},
        {"attempt": ""},
        {"inputs": {"images": "a" * 8000}},
        {"inputs": {"images": 3}},
        {"config": {"size": 64, "rate": 0.5}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_record_with_values_of_other_types_is_no_record(built: tuple[Store, Record], fields: dict[str, Any]) -> None:
    store, record = built
    path = f"{record.address}/record.json"
    store.put(path, changed(json.loads(store.get(path)), **fields))
    assert store.find(STEP) is None


def test_the_files_of_a_step_are_a_data_root_whose_bytes_are_compared(built: tuple[Store, Record]) -> None:
    store, record = built
    source = store.source_of(record)
    assert source.open("part.parquet").read() == source.read("part.parquet")
    with pytest.raises(FileNotFoundError):
        source.read("record.json")
    store.put(f"{record.address}/{record.attempt}/part.parquet", b"x" * record.files[0].size)
    with pytest.raises(InputError, match="its bytes are not"):
        source.open("part.parquet")
