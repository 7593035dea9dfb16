"""Takes the guards of guards.toml out of a copy of this repository, one by one, and runs the tests that must then fail.

    python tests/guards.py [WORD ...] [--seconds N] [--list]

A WORD selects the guards whose name or file has it. Each guard is a text of a file and what stands there without the
guard. The named tests run first on the unchanged copy, where they must pass. A table says of each guard whether a test
has caught that it is gone; the exit code is 1 if one survives.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
GUARDS = Path(__file__).with_suffix(".toml")
SECONDS = 300.0  # for the tests of one guard; without one of them, a test may never end
_COPIED = ("chexseg_ray", "jobs", "configs", "tests", "docs", "benchmarks")
_PASSED, _FAILED = 0, 1  # of pytest's exit codes


@dataclass(frozen=True)
class Guard:
    """A check of the package.

    Args:
        name: what it refuses or keeps.
        file: where it is, below the repository.
        text: the guard, which occurs once in the file.
        without: what stands there when it is taken out.
        tests: which of pytest must then fail, at least one of them.
        seconds: the most that they may take, where they never end without the guard; 0 for the usual time.
    """

    name: str
    file: str
    text: str
    without: str
    tests: tuple[str, ...]
    seconds: float = 0.0


def read_guards(path: Path = GUARDS) -> list[Guard]:
    """Read the list of guards.

    Args:
        path: a TOML file, [[guard]] each.

    Raises:
        TypeError: a guard has other fields than Guard.
    """
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["guard"]
    return [Guard(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def copy_repository(folder: Path) -> Path:
    """Copy what tests need into a folder, and return the copy's root.

    Args:
        folder: an empty folder.
    """
    root = folder / "copy"
    root.mkdir()
    for path in REPOSITORY.iterdir():
        if path.name in _COPIED:
            shutil.copytree(path, root / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, root)
    return root


def run_tests(root: Path, tests: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run tests of a copy, and end all their processes.

    Args:
        root: of the copy.
        tests: for pytest.
        seconds: the most that they may take.

    Returns:
        Pytest's exit code, None after that time; and its last lines.
    """
    env = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", *tests]
    process = subprocess.Popen(
        command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        output = ""
    code = process.poll()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return code, "\n".join(output.strip().splitlines()[-25:])


def take_out(guard: Guard, root: Path, seconds: float) -> str:
    """Take one guard out of a copy, run its tests, and put it back.

    Args:
        guard: to be taken out.
        root: of the copy.
        seconds: the most that its tests may take.

    Returns:
        caught, caught (no end), SURVIVED, text not found, or what pytest says otherwise.
    """
    path = root / guard.file
    whole = path.read_text(encoding="utf-8")
    if whole.count(guard.text) != 1:
        return "text not found"
    path.write_text(whole.replace(guard.text, guard.without), encoding="utf-8")
    try:
        code, _ = run_tests(root, guard.tests, guard.seconds or seconds)
    finally:
        path.write_text(whole, encoding="utf-8")
    return {None: "caught (no end)", _FAILED: "caught", _PASSED: "SURVIVED"}.get(code, f"pytest ends with {code}")


def main() -> int:
    """Run the program; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="parts of names or files of guards; all guards without one")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the most for the tests of one guard")
    parser.add_argument("--list", action="store_true", help="print the guards and their tests, and end")
    flags = parser.parse_args()
    guards = [g for g in read_guards() if not flags.words or any(w in f"{g.name} {g.file}" for w in flags.words)]
    if flags.list:
        for guard in guards:
            print(guard.name, guard.file, *guard.tests, sep="\n    ")
        return 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it, and tests would inherit that
    start = time.monotonic()
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="guards_", ignore_cleanup_errors=True) as folder:
        root = copy_repository(Path(folder))
        tests = sorted({test for guard in guards for test in guard.tests})
        code, output = run_tests(root, tests, 1800.0)
        print(f"{len(tests)} tests on the whole code: {time.monotonic() - start:.0f} s", flush=True)
        if code != _PASSED:
            print(output, f"the tests must pass before a guard is taken out (pytest ends with {code})", sep="\n")
            return 1
        for guard in guards:
            begin = time.monotonic()
            results[guard.name] = take_out(guard, root, flags.seconds)
            place = guard.file.removeprefix("chexseg_ray/")
            print(f"{results[guard.name]:<16} {time.monotonic() - begin:5.1f} s  {place:<30} {guard.name}", flush=True)
    survivors = [name for name, result in results.items() if not result.startswith("caught")]
    print(f"{len(results)} guards, {len(survivors)} not caught, {time.monotonic() - start:.0f} s")
    for name in survivors:
        print(f"  {results[name]}: {name}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
