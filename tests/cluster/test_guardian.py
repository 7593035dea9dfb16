"""A job's process that ends without a word is explained by its parent, which passes everything else on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys, time
from chexseg_ray.command import Parser, guarded
from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.cluster.guardian import EndedError, in_child, is_guarded

def job():
    print("job", os.getpid(), is_guarded(), flush=True)
    BODY

def run(flags):
    print("before")  # not flushed: must not be printed twice
    try:
        return in_child(job)
    except EndedError as error:
        error.add_note("kept")
        raise

if __name__ == "__main__":
    sys.exit(guarded(Parser("test"), run, []))
"""


def start(body: str, folder: Path) -> "subprocess.Popen[str]":
    path = folder / "program.py"
    path.write_text(PROGRAM.replace("BODY", body))
    return subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
    )


def child_of(process: "subprocess.Popen[str]") -> int:
    assert process.stdout is not None
    assert process.stdout.readline() == "before\n"
    words = process.stdout.readline().split()
    assert words[0] == "job"
    assert words[2] == "True"
    assert int(words[1]) != process.pid
    return int(words[1])


@pytest.mark.parametrize(
    ("body", "code", "printed"),
    [
        ("return 0", 0, ""),
        ("return 3", 3, ""),
        ("return 1", 1, ""),
        ("raise InputError('wrong')", 2, "error: wrong\n"),
        ("raise TransientError('later')", 75, "error: later\n"),
        ("sys.exit(141)", 141, ""),
        ("os._exit(130)", 130, ""),
        ("os._exit(1)", 75, "error: Ray's node process (raylet) has died: see raylet.out in its logs, check the "),
        ("os.kill(os.getpid(), signal.SIGKILL)", 75, "error: the job's process was ended by SIGKILL"),
        ("os.abort()", 75, "error: the job's process was ended by SIGABRT"),
    ],
)
def test_the_code_is_the_jobs_and_an_end_without_a_word_is_explained(
    body: str, code: int, printed: str, tmp_path: Path
) -> None:
    process = start(body, tmp_path)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stdout.count("before") == stdout.count("job") == 1
    assert stderr.startswith(printed)
    lines = stderr.splitlines()
    assert len(lines) == (0 if not printed else 2 if "process" in printed else 1), stderr
    assert lines[1:] == (["kept"] if len(lines) == 2 else [])


def test_a_bug_keeps_its_traceback_and_exit_code(tmp_path: Path) -> None:
    _, stderr = (process := start("raise ZeroDivisionError", tmp_path)).communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.rstrip().endswith("ZeroDivisionError")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_reaches_the_job(number: signal.Signals, code: int, tmp_path: Path) -> None:
    process = start("time.sleep(60)", tmp_path)
    child_of(process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert stderr.startswith("error: stopped by ")
    assert stderr.count("\n") == 1


def test_the_job_ends_with_the_process_that_was_started(tmp_path: Path) -> None:
    process = start("time.sleep(60)", tmp_path)
    child = child_of(process)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while True:
        try:
            os.kill(child, 0)
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            break
        if state == "Z":
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
