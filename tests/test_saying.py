"""What a terminal is told: no name moves its cursor, and no line shows credentials."""

import argparse

import pytest

from chexseg_ray.command import Parser, guarded
from chexseg_ray.errors import InputError
from chexseg_ray.progress import say

MOVES = "a\x1b[2Jb\rc\x07d\u2028e\u202ef"  # clear the screen, go back, ring, another line end, right to left


def test_what_is_said_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{MOVES}\nsecond line\tß 胸 é")
    said = capsys.readouterr().out
    assert said == "a\\x1b[2Jb\\rc\\x07d\\u2028e\\u202ef\nsecond line\\tß 胸 é\n"


def test_an_error_is_one_line_without_credentials(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: argparse.Namespace) -> int:
        error = InputError(f"s3://key:secret@bucket/x?token=abc: {MOVES}\nis wrong")
        error.add_note("to go on: run s3://key:secret@bucket/x")
        raise error

    assert guarded(Parser("test"), fail, []) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 2
    assert "\x1b" not in error
    assert "\r" not in error
    assert "secret" not in error
    assert "abc" not in error
