"""Ctrl-C and SIGTERM end a job with one line and 130 or 143."""

import os
import signal
import subprocess
import sys
import time

import pytest

from chexseg_ray.command import Parser, guarded
from chexseg_ray.errors import Stopped, stop_on_signals, stopped

JOB = """
import argparse, sys, time
from chexseg_ray.command import Parser, guarded
def work(flags):
    try:
        print("ready", flush=True)
        time.sleep(60)
    {}
    return 0
sys.exit(guarded(Parser("test"), work))
"""
PLAIN = JOB.format("finally:\n        pass")
RAYS_OWN = JOB.format("except KeyboardInterrupt:\n        raise KeyboardInterrupt")  # as Ray's native code does
HANGS = JOB.format("finally:\n        print('ending', flush=True); time.sleep(60)")


def start(script: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("script", [PLAIN, RAYS_OWN], ids=["plain", "another KeyboardInterrupt"])
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_is_one_line_and_its_exit_code(script: str, number: signal.Signals, name: str) -> None:
    process = start(script)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert stderr == f"error: stopped by {name}\n"


def test_a_second_signal_ends_a_clean_up_at_once() -> None:
    process = start(HANGS)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT


def test_a_clean_up_that_hangs_is_ended_by_force() -> None:
    script = "import chexseg_ray.errors as errors; errors._SECONDS_TO_STOP = 0.5\n" + HANGS
    process = start(script)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 143


def test_handlers_are_put_back_and_an_ignored_signal_stays_ignored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals():
            assert signal.getsignal(signal.SIGTERM) is not before
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
            except KeyboardInterrupt:
                pytest.fail("it was not ignored")
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGINT, interrupt)


def test_notes_are_kept() -> None:
    error = KeyboardInterrupt()
    error.add_note("kept")
    assert stopped(error).__notes__ == ["kept"]
    assert stopped(error).exit_code == 130
    own = Stopped(signal.SIGTERM)
    assert stopped(own) is own


@pytest.mark.parametrize(("number", "code"), [(28, 75), (30, 75), (24, 75), (2, None)])
def test_a_full_disk_or_too_many_files_anywhere_is_one_line(
    number: int, code: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(_: object) -> int:
        raise OSError(number, os.strerror(number), "/tmp/x")

    if code is None:
        with pytest.raises(OSError, match="No such file"):
            guarded(Parser("test"), work, [])
    else:
        assert guarded(Parser("test"), work, []) == code
        error = capsys.readouterr().err
        assert error.startswith(f"error: [Errno {number}] ")
        assert error.count("\n") == 1
