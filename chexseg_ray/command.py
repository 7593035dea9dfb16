"""The command line of all jobs: flags, a config by its file or name, and `section.field=value` overrides.

An error that the user can act on becomes one line and an exit code.
"""

import argparse
import errno
import io
import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NoReturn

from chexseg_ray.config.parse import load_config
from chexseg_ray.config.schema import StudyConfig
from chexseg_ray.errors import InputError, TransientError, stop_on_signals, stopped, without_credentials
from chexseg_ray.progress import one_line, say

DEFAULT_CONFIG = "demo"
EXIT_CODES = "Exit codes: 0 done, 2 bad config or data, 3 some trials failed, 75 try again later, 130 or 143 stopped."
# a full or read-only disk (of temporary files, say), a failing one, or too many open files or processes
_MACHINE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EAGAIN,
)
_PACKAGE = Path(__file__).resolve().parent
_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.[^=]+)?=")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises InputError, takes no shortened flags, and knows --version."""

    def __init__(self, description: str, epilog: str = "") -> None:
        """Make a parser; `description` and `epilog` are printed by --help above and below the flags."""
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, epilog=epilog, formatter_class=formatter, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"chexseg_ray {package_version()}")

    def error(self, message: str) -> NoReturn:
        """Raise InputError with the message that argparse would print with the usage."""
        raise InputError(f"{message}; see --help")


def package_version() -> str:
    """Return the installed version, or `unknown` if the package runs from a folder without being installed."""
    try:
        return version("chexseg_ray")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Args:
        config: the study's config.
        flags: the job's parsed flags.
        text: config file and overrides as they were written.
    """

    config: StudyConfig
    flags: argparse.Namespace
    text: str


def study_parser(description: str) -> Parser:
    """Return the parser of a job that works on a study, with CONFIG, overrides and --schema.

    Args:
        description: what the job does, which --help prints above the flags.
    """
    parser = Parser(description, _sections())
    known = f"the name of a config that comes with the package ({', '.join(config_names())}; default: {DEFAULT_CONFIG})"
    names = f"a YAML file, or {known}; and overrides. Write a file whose name begins with - after --."
    parser.add_argument("words", nargs="*", metavar="CONFIG | section.field=value", help=names)
    schema = "print the JSON schema of a config, with each field's meaning, and end"
    parser.add_argument("--schema", action="store_true", help=schema)
    return parser


def run_study_job(parser: Parser, run: Callable[[Asked], int], arguments: Sequence[str] | None = None) -> int:
    """Parse the command line of a job that works on a study, and run it.

    Args:
        parser: a parser of study_parser(), with the job's own flags.
        run: does the job's work and returns its exit code.
        arguments: the command line; None takes sys.argv.

    Returns:
        The exit code: 0 done, 2 bad config or data, 3 some trials failed, 75 try again later. Other errors propagate.
    """

    def parsed(flags: argparse.Namespace) -> int:
        if flags.schema:
            say(json.dumps(StudyConfig.model_json_schema(), indent=1))
            return 0
        overrides = [word for word in flags.words if is_override(word)]
        files = [*(word for word in flags.words if not is_override(word)), *flags.names]
        if len(files) > 1:
            raise InputError(f"{files[1]}: one config file at a time; overrides are section.field=value")
        name = files[0] if files else DEFAULT_CONFIG
        config = load_config(find_config(name), overrides)
        return run(Asked(config, flags, " ".join([name, *overrides])))

    return guarded(parser, parsed, arguments)


def guarded(parser: Parser, run: Callable[[argparse.Namespace], int], arguments: Sequence[str] | None = None) -> int:
    """Parse a command line and run a job on it; an error for the user becomes one line and its exit code.

    Args:
        parser: the job's parser.
        run: does the job's work and returns its exit code; gets the flags, with the words after `--` as `names`.
        arguments: the command line; None takes sys.argv.

    Returns:
        The job's exit code, or that of the error: 130 after Ctrl-C, 143 after SIGTERM. Notes of the error, which say
        what was kept and how to go on, are printed below it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without some letter does not end a run
    try:
        _refuse_another_checkout(Path(sys.argv[0]))
        flags = parser.parse_intermixed_args(given[:end])
        flags.names = given[end + 1 :]
        with stop_on_signals():
            return run(flags)
    except (InputError, TransientError, KeyboardInterrupt) as caught:
        error = stopped(caught) if isinstance(caught, KeyboardInterrupt) else caught
        for line in (f"error: {error}", *getattr(error, "__notes__", ())):
            print(one_line(without_credentials(line)), file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        if error.errno not in _MACHINE_ERRORS:
            raise  # a fault of the program
        text = f"error: {error}: free space, or raise the limit, then run again"
        print(one_line(without_credentials(text)), file=sys.stderr, flush=True)
        return TransientError.exit_code


def _refuse_another_checkout(script: Path) -> None:
    """Refuse to run a script of one checkout with the installed package of another."""
    beside = script.resolve().parent.parent / "chexseg_ray"
    if script.resolve().parent.name == "jobs" and beside.is_dir() and beside != _PACKAGE:
        remedy = f"run pip install --editable {beside.parent}, or set PYTHONPATH={beside.parent}"
        raise InputError(f"{script}: the installed chexseg_ray is that of {_PACKAGE.parent}: {remedy}")


def command_line() -> str:
    """Return the command line of this process, as a shell takes it."""
    program = ["python", sys.argv[0]] if sys.argv[0].endswith(".py") else [sys.argv[0]]
    return shlex.join([*program, *sys.argv[1:]])


def is_override(word: str) -> bool:
    """Return whether a word of a command line is section.field=value, and not the name of a file or a URI."""
    return bool(_OVERRIDE.match(word)) and not os.path.lexists(word)


def config_folder() -> Path | None:
    """Return the folder of the shipped configs: in the installed package, or beside it in the repository."""
    inside, beside = _PACKAGE / "configs", _PACKAGE.parent / "configs"
    if inside.is_dir():
        return inside
    return beside if (_PACKAGE.parent / "pyproject.toml").is_file() else None


def config_names() -> list[str]:
    """Return the names of the shipped configs, such as `demo`."""
    folder = config_folder()
    return sorted(path.stem for path in folder.glob("*.yaml")) if folder else []


def find_config(name: str) -> Path:
    """Return the file of a config.

    Args:
        name: a path, or the name of a shipped config; a file of that name comes first.

    Raises:
        InputError: there is neither.
    """
    if os.path.isfile(name) or os.sep in name or name.endswith((".yaml", ".yml")):
        return Path(name)
    folder = config_folder()
    if folder and name in config_names():
        return folder / f"{name}.yaml"
    known = ", ".join(config_names())
    raise InputError(f"{name}: is neither a file nor a config of the package: name a YAML file, or one of {known}")


def _sections() -> str:
    """Return the list of the config's sections for --help."""
    lines = ["sections of a config (their fields and meanings: --schema):"]
    for name, field in StudyConfig.model_fields.items():
        meaning = " ".join((getattr(field.annotation, "__doc__", None) or "").split())
        lines.append(f"  {name:<20} {textwrap.shorten(meaning, 96, placeholder=' ...')}")
    return "\n".join([*lines, "", EXIT_CODES])
