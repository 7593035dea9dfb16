"""Damages files: each mutation is a function of (bytes, other seeds, random numbers)."""

import random
import re
from collections.abc import Callable, Sequence

MOST_BYTES = 300_000  # of a damaged file
_NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"0.5",
    b"-0.0",
    b"1e-320",
    b"1e999",
    b"NaN",
    b"Infinity",
    b"null",
    b"true",
    b'"1"',
    b"[]",
    b"127",
    b"255",
    b"65536",
    b"2147483648",
    b"-9223372036854775809",
    b"18446744073709551616",
    b"9" * 400,
    b"9" * 5000,
)
_BYTES = (b"\0", b"\xff", b"\x7f", b"\x80", b"\x01")
_TEXTS = (
    b"\n",
    b"\r\n",
    b'"',
    b"'",
    b",",
    b";",
    b":",
    b"\\",
    b"\\ud800",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\x1b[2J",
    b"<script>",
    b"=1+1",
    b"../",
    b"/etc/passwd",
    b"C:\\",
    b"&a",
    b"*a",
    b"<<: *a",
    b"!!python/object/apply:os.system [id]",
    b"!!binary",
    b"2026-99-99",
    b"{",
    b"[",
    b"}",
    b"]",
    b"- ",
    b"? ",
    b"|",
    b"%YAML 9.9\n",
    b"---\n",
    b"s3://name:KEY@host/",
    b"cos\nsystem\n(S'id'\ntR.",
    b"__proto__",
)

Draw = random.Random
Mutation = Callable[[bytes, Sequence[bytes], Draw], bytes]


def _place(data: bytes, draw: Draw) -> int:
    """A place in the bytes; near one of the ends, where headers are, in half of the draws."""
    if draw.random() < 0.5:
        return draw.randrange(len(data) + 1)
    near = min(len(data), draw.choice((8, 64, 512)))
    offset = draw.randrange(near + 1)
    return offset if draw.random() < 0.7 else len(data) - offset


def _slice(data: bytes, draw: Draw) -> tuple[int, int]:
    start = _place(data, draw)
    return start, min(len(data), start + draw.choice((1, 2, 4, 16, 100, 1000, len(data))))


def flip(data: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 8)) if data else 0):
        out[min(_place(data, draw), len(out) - 1)] ^= 1 << draw.randrange(8)
    return bytes(out)


def cut(data: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    return data[: _place(data, draw)]


def remove(data: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    start, end = _slice(data, draw)
    return data[:start] + data[end:]


def splice(data: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    other = draw.choice(others)
    start, end = _slice(data, draw)
    first, last = _slice(other, draw)
    return data[:start] + other[first:last] + data[draw.choice((start, end)) :]


def repeat(data: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    start, end = _slice(data, draw)
    times = draw.choice((2, 3, 20, 1000, 30_000))
    return data[:end] + data[start:end] * min(times, MOST_BYTES // max(end - start, 1)) + data[end:]


def swap(data: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    a, b = sorted((_place(data, draw), _place(data, draw)))
    c = draw.randrange(b, len(data) + 1)
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def number(data: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    found = [*_NUMBER.finditer(data)]
    if not found:
        return flip(data, others, draw)
    match = draw.choice(found)
    return data[: match.start()] + draw.choice(_NUMBERS) + data[match.end() :]


def integer(data: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    width = draw.choice((1, 2, 4, 8))
    start = _place(data, draw)
    value = draw.choice((0, 1, 2, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1, len(data)))
    new = (value % 2 ** (8 * width)).to_bytes(width, draw.choice(("little", "big")))
    return data[:start] + new + data[start + width :]


def text(data: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    start, end = _slice(data, draw)
    return data[:start] + draw.choice((*_TEXTS, *_BYTES)) + data[draw.choice((start, end)) :]


def nest(data: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    start = _place(data, draw)
    times = draw.choice((10, 100, 2000, 100_000))
    one, close = draw.choice(
        ((b"[", b"]"), (b'{"a":', b"}"), (b"{a: ", b"}"), (b"- ", b""), (b"(", b")"), (b"\xff", b""))
    )
    inner = data[start:] if draw.random() < 0.3 else b"1"
    return data[:start] + one * times + inner + close * (times if draw.random() < 0.7 else 0) + data[start:]


def line(data: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    lines = data.splitlines(keepends=True)
    if len(lines) < 2:
        return flip(data, others, draw)
    index = draw.randrange(len(lines))
    kind = draw.randrange(3)
    if kind == 0:
        del lines[index]
    elif kind == 1:
        lines.insert(draw.randrange(len(lines)), lines[index])
    else:
        lines[index] = lines[index].rstrip(b"\n") + draw.choice(_TEXTS) + b"\n"
    return b"".join(lines)


def name(data: bytes, others: Sequence[bytes], draw: Draw) -> bytes:
    """Exchange two words of the bytes."""
    words = [*re.finditer(rb"\w{3,}", data)]
    if len(words) < 2:
        return flip(data, others, draw)
    one, other = draw.choice(words), draw.choice(words)
    return data[: one.start()] + other.group() + data[one.end() :]


MUTATIONS: tuple[Mutation, ...] = (
    flip,
    flip,
    cut,
    remove,
    splice,
    repeat,
    swap,
    number,
    number,
    integer,
    text,
    nest,
    line,
    name,
)


def damaged(seeds: Sequence[bytes], draw: Draw) -> bytes:
    """Draw one of the seeds, and damage it by one to four mutations.

    Args:
        seeds: valid files of one kind.
        draw: random numbers, of which the result is a function.
    """
    data = draw.choice(seeds)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 4))):
        data = draw.choice(MUTATIONS)(data, seeds, draw)[:MOST_BYTES]
    return data
