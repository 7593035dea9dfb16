"""The command line of the jobs: a config file, `section.field=value` overrides, few flags; errors become exit codes."""

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chexseg_ray.config import StudyConfig, load_config
from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.progress import one_line

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "demo.yaml"


@dataclass(frozen=True)
class Asked:
    """What a command line asks for: the config, the flags given, and the file and overrides as they were written."""

    config: StudyConfig
    flags: frozenset[str]
    text: str


def run_job(usage: str, run: Callable[[Asked], int], flags: Sequence[str] = ()) -> int:
    """Parse sys.argv, run, and turn errors into one line and an exit code.

    Args:
        usage: printed by --help.
        run: returns an exit code.
        flags: those allowed, such as --plan.

    Returns:
        0 done, 2 bad config or data, 3 some trials failed, 75 transient; any other error propagates.
    """

    def parsed(arguments: Sequence[str]) -> int:
        given = frozenset(a for a in arguments if a.startswith("-"))
        unknown = sorted(given - set(flags))
        if unknown:
            raise InputError(f"{unknown[0]}: no such flag; there are {', '.join(['--help', *flags])}")
        words = [a for a in arguments if a not in given]
        files = [a for a in words if "=" not in a]
        if len(files) > 1:
            raise InputError(f"{files[1]}: one config file at a time; overrides are section.field=value")
        overrides = [a for a in words if "=" in a]
        config = load_config(files[0] if files else DEFAULT_CONFIG, overrides)
        text = " ".join([files[0] if files else f"{DEFAULT_CONFIG.parent.name}/{DEFAULT_CONFIG.name}", *overrides])
        return run(Asked(config, given, text))

    return guarded(usage, parsed)


def guarded(usage: str, run: Callable[[Sequence[str]], int]) -> int:
    """Run on the words of the command line, or print the usage; an error for the user is one line and its exit code."""
    arguments = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter ends no run
    if "--help" in arguments or "-h" in arguments:
        print(usage.strip())
        return 0
    try:
        return run(arguments)
    except (InputError, TransientError) as error:
        print(one_line(f"error: {error}"), file=sys.stderr, flush=True)
        return error.exit_code


def run_tool(usage: str, run: Callable[[str, Sequence[str], Sequence[str], str], int], default_out: str) -> int:
    """A job that works on a model: parse `MODEL [WORD ...] [section.field=value ...] [--out=FOLDER]` and run.

    Args:
        usage: printed by --help.
        run: gets the model's name, overrides, the other words and the folder; returns an exit code.
        default_out: the folder when none is named.
    """

    def parsed(arguments: Sequence[str]) -> int:
        flags = [a for a in arguments if a.startswith("-")]
        unknown = [a for a in flags if not a.startswith("--out=") or a == "--out="]
        if unknown:
            raise InputError(f"{unknown[0]}: no such flag; there are --help, --out=FOLDER")
        words = [a for a in arguments if a not in flags]
        if "" in words:
            raise InputError("one of the words is empty: write . for the current folder")
        overrides = [a for a in words if "=" in a and a.partition("=")[0].partition(".")[0] in StudyConfig.model_fields]
        named = [a for a in words if a not in overrides]
        if not named:
            raise InputError("name a MODEL: a study's YAML file, a record's folder (.../segmentation/...) or an exported model's folder; see --help")
        return run(named[0], overrides, named[1:], flags[-1].removeprefix("--out=") if flags else default_out)

    return guarded(usage, parsed)
