"""The command line of the jobs: a config file, `section.field=value` overrides, few flags; errors become exit codes."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chexseg_ray.config import StudyConfig, load_config
from chexseg_ray.errors import InputError, TransientError

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
    arguments = sys.argv[1:]
    if "--help" in arguments or "-h" in arguments:
        print(usage.strip())
        return 0
    try:
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
    except (InputError, TransientError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
