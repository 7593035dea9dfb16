"""Inputs of kinds that once escaped as another error, took gigabytes or were read as good, made anew."""

import json
import pickle
from collections.abc import Iterator
from typing import Any

from slow.readers import Models, OldRecords, Reader


def config(reader: Reader) -> Iterator[bytes]:
    for times in (100, 1000, 10_000):
        yield b"a: " + b"[" * times
        yield b"a: " + b"{b: " * times + b"1" + b"}" * times
        yield b"- " * times
    lines = ["a: &a0 [x]"] + [f"b{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 25)]
    yield "\n".join(lines).encode()
    yield from (b"a: 2026-99-99 99:99:99", b"a: !!timestamp x", b"? [a]\n: 1", b"a: \xff", b"a: &a [*a]", b"<<: 3", b"")


def override(reader: Reader) -> Iterator[bytes]:
    for text in config(reader):
        yield b"sweep.p=" + text.removeprefix(b"a: ").replace(b"\n", b" ")
    yield b".".join([b"a"] * 5000) + b"=1"
    yield from (b"=", b".=1", b"sweep.p.0.a=1", b"sweep.p=\xed\xa0\x80")


def checkpoint(reader: Reader) -> Iterator[bytes]:
    yield from (bytes([byte]) for byte in range(256))
    head = b"".join(pickle.dumps(v, protocol=2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    yield head
    for value in (3, {}, [], None, {"a": 3}, {3: 4}, ("storage", 1), 2**70, "x" * 10_000):
        pickled = pickle.dumps(value, protocol=2)
        yield head + pickled + pickle.dumps([], protocol=2)
        yield pickled
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    for arguments in (b"()", b"(I1\nt", b"(}I0\n(t(tI00\n}t", b"((tQI0\n(t(tI00\n}t", b"(I1\nQI0\n(t(tI00\n}t"):
        yield head + b"\x80\x02}X\x01\x00\x00\x00a" + rebuild + arguments + b"Rs." + pickle.dumps([], protocol=2)
    for length in (0, 1, 2**31, 2**63, 2**64 - 1):
        yield (
            length.to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,39999999996]}}'
        )
    yield b"\x02\0\0\0\0\0\0\0{}" * 3


def record(reader: Reader) -> Iterator[bytes]:
    good = json.loads(reader.seeds[0])
    values: list[Any] = [{"a": 1}, [1], "1", None, True, -1, 2**80, 1.5, "a" * 8000, "../a", "a\0b", "\ud800"]
    for name in good:
        for value in values:
            if type(value) is not type(good[name]):
                yield json.dumps({**good, name: value}).encode()
    for value in values:
        yield json.dumps({**good, "files": [{**good["files"][0], "path": value}]}).encode()
        yield json.dumps({**good, "inputs": {"images": value}}).encode()
        yield json.dumps({**good, "attempt": value}).encode()
    yield from (b"", b"null", b"[]", b"{}", b"[" * 100_000, b"\xff", b"{" * 3000)


def table(reader: Reader) -> Iterator[bytes]:
    good = reader.seeds[0]
    yield from (good[:-1], good + b"\0", good[::-1], b"", b"PAR1", b"PAR1" * 3, b"\0" * len(good))
    for place in range(0, len(good), 7):
        yield good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]


def card(reader: Reader) -> Iterator[bytes]:
    assert isinstance(reader, Models)
    for name in (
        "tu-local-dir:..",
        "tu-hf_hub:a/b",
        "tu-HF_HUB:a/b",
        "../x",
        "tu-",
        "resnet18:x",
        "",
        "\0",
        "x" * 9000,
    ):
        yield json.dumps({**reader.card, "smp": {**reader.card["smp"], "encoder_name": name}}).encode()
    for field in reader.card:
        if field not in (
            "notice",
            "input",
            "versions",
            "threshold_sources",
            "mean",
            "std",
            "validation_miou",
            "record",
        ):
            for value in (None, [], {}, -1, "x", 2**80, [[]]):
                yield json.dumps({**reader.card, field: value}).encode()


def masks(reader: Reader) -> Iterator[bytes]:
    for size in ([1e5, 1e5], [10**9, 10**9], [-1, 5], [0, 0], "9", [2**70, 1], [10_001, 10_001]):
        yield json.dumps({"a": {"img_size": size, "Edema": [[[1, 1], [2, 2], [3, 1]]]}}).encode()
        yield json.dumps(
            {"a": {name: {"size": size, "counts": "0"} for name in ("Edema", "Airspace Opacity")}}
        ).encode()
    for contour in ([[1e300, 1], [2, 2], [3, 1]], [[float("nan"), 1]] * 3, [["1", 1]], [[True, False]], [1], "x"):
        yield json.dumps({"a": {"img_size": [9, 9], "Edema": [contour]}}).encode()
    yield from (b"[" * 100_000, b'{"a":' * 100_000, b"", b"null", b"{}x", b"\xff\xfe")


CORPUS = {
    "config": config,
    "override": override,
    "checkpoint": checkpoint,
    "record": record,
    "old record": record,
    "table": table,
    "card": card,
    "masks": masks,
}
MAY_BE_READ = (OldRecords,)  # some values are as good as those that were there
