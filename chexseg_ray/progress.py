"""Progress for people: a bar that moves on a terminal, a line now and then in a log."""

import sys
import time
import unicodedata
from collections.abc import Callable

_LOG_SECONDS = 15.0


def say(text: str) -> None:
    """Print at once; what could move a terminal's cursor or change its colours is escaped."""
    print("\n".join(one_line(line) for line in text.split("\n")), flush=True)


def one_line(text: str) -> str:
    """A text with control characters, line breaks and what is no character as escapes: for names that anybody may have given."""
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode() for c in text)


def track(label: str, total: int) -> Callable[[int, str], float]:
    """A function of (done, note) that shows how far a piece of work is, and returns the estimated seconds left."""
    start = time.monotonic()
    last = [start]
    terminal = sys.stdout.isatty()

    def show(done: int, note: str = "") -> float:
        now = time.monotonic()
        left = (now - start) / done * (total - done) if done else 0.0
        if not terminal and done < total and now - last[0] < _LOG_SECONDS:
            return left
        last[0] = now
        text = f"{label} {done}/{total}" + (f", {note}" if note else "") + (f", about {left:.0f} s left" if done < total else "")
        if not terminal:
            say(f"  {text}")
            return left
        filled = round(24 * done / max(1, total))
        end = "\n" if done >= total else ""
        print(f"\r\x1b[K  [{'#' * filled}{'.' * (24 - filled)}] {text}", end=end, flush=True)
        return left

    return show
