"""What people read on a terminal: lines, aligned tables, and progress (a bar; in a log, a line every 15 seconds).

Names that anybody may give are made harmless here, for terminals and for CSV files.
"""

import os
import re
import signal
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_LOG_SECONDS = 15.0
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # how it begins
_NUMBER = r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?%?"
_NUMBERS = re.compile(f"{_NUMBER}( to {_NUMBER})?")


def say(text: str) -> None:
    """Print a text at once, with its line breaks; what could move a terminal's cursor or change its colours is escaped.

    Args:
        text: one or more lines.
    """
    _print("\n".join(one_line(line) for line in text.split("\n")) + "\n")


def _print(text: str) -> None:
    """Print a text at once; end the process with 141 if the reader of the output has ended, as `head` does."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at the end
        raise SystemExit(128 + signal.SIGPIPE) from None


def one_line(text: str) -> str:
    """Escape line breaks, control characters and code points that are no character, for names that anybody may give.

    Args:
        text: any text.

    Returns:
        The text in one line; letters, punctuation and spaces of any script stay as they are.
    """
    return "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape").decode()
        for character in text
    )


def csv_cell(value: Any) -> Any:
    """Guard a cell of a CSV file: a spreadsheet does not read a text as a formula, and every text is UTF-8.

    Args:
        value: a cell.

    Returns:
        A text with a ' before it if it begins as a formula does and is no number (nor two, as `-0.1 to +0.2`), and with
        an escape for each code point that is no character; other values as they are.
    """
    if not isinstance(value, str):
        return value
    quote = "'" if value.startswith(_FORMULA) and not _NUMBERS.fullmatch(value) else ""
    return quote + value.encode(errors="backslashreplace").decode()


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lay out a table as lines, indented by two spaces, whose columns are as wide as their widest cell.

    Args:
        rows: cells, equally many in each row.

    Yields:
        One line per row.
    """
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def track(label: str, total: int) -> Callable[[int, str | Callable[[], str]], float]:
    """Start to show how far a piece of work is.

    Args:
        label: what is worked on.
        total: number of items of work.

    Returns:
        A function of (items done, a note to print with them) that prints them and returns the estimated seconds left.
        A note that is a function is called only when it is printed.
    """
    start = time.monotonic()
    last_shown = start
    terminal = sys.stdout.isatty()

    def show(done: int, note: str | Callable[[], str] = "") -> float:
        """Print the bar, or, in a log, a line when the last one is old enough or the work is done."""
        nonlocal last_shown
        now = time.monotonic()
        left = (now - start) / done * (total - done) if done else 0.0
        if not terminal and done < total and now - last_shown < _LOG_SECONDS:
            return left
        last_shown = now
        text = f"{label} {done}/{total}"
        if note:
            text += f", {note if isinstance(note, str) else note()}"
        if done < total:
            text += f", about {left:.0f} s left"
        if not terminal:
            say(f"  {text}")
            return left
        filled = round(24 * done / max(1, total))
        end = "\n" if done >= total else ""
        _print(f"\r\x1b[K  [{'#' * filled}{'.' * (24 - filled)}] {text}{end}")
        return left

    return show
