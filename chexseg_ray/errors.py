"""What ends a job with one line and an exit code: two errors (as data between processes too), and two signals.

What the errors quote of a user's input is cut, and shows no credentials.
"""

import os
import re
import reprlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SECONDS_TO_STOP = 25.0  # after which the process is ended by force

_came: list[int] = []  # the signals that came
_blocks: list[object] = []  # the blocks of stop_on_signals that are entered

_URI = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*):(?P<slashes>//?)(?P<rest>[^\s'\"]*)")  # pathlib leaves one slash
_TEXT_AS_PORT = re.compile(r"[^/:\[]+:(?!\d*([/:,;.)]|$))")  # such as a key whose @ was forgotten


class InputError(ValueError):
    """Bad config or data: one line naming the file, row or field, the rule, and what to do. A retry will not help."""

    exit_code = 2


class TransientError(RuntimeError):
    """Something outside failed for now (storage, a claim held by another driver). A retry may help."""

    exit_code = 75


def quoted(value: Any) -> str:
    """Quote a value of a user or of a file for a message: in one line, cut, without the credentials of a URI.

    Args:
        value: any plain value.

    Returns:
        What Python prints for it, with `...` in place of what is left out; at most some 600 characters.
    """
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python prints no whole number of more than 4300 digits
        return "a number of more than 4300 digits"


class _Short(reprlib.Repr):
    """Cuts strings after 80 characters, lists and mappings after a few entries, and nesting at the second level."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 80, 80

    def repr_str(self, text: str, level: int) -> str:
        """Quote the beginning of a text."""
        return repr(without_credentials(text)[: self.maxstring]) + ("..." if len(text) > self.maxstring else "")


_SHORT = _Short()


def shortened(text: str, length: int = 80) -> str:
    """Cut a text of a user or of a file for a message, and escape its line breaks; hide the credentials of a URI.

    Args:
        text: any text.
        length: characters that are kept.
    """
    whole = without_credentials(text)
    return repr(whole[:length])[1:-1] + ("..." if len(whole) > length else "")


def without_credentials(text: str) -> str:
    """Hide what may be credentials in the URIs of a text: name, password and key before an @, and the options.

    Args:
        text: any text.
    """
    return _URI.sub(_hide, text) if ":/" in text else text


def _hide(uri: re.Match[str]) -> str:
    """Return a URI with *** in place of what may be credentials; an abfs container before the @ is none."""
    address, mark, _ = uri["rest"].partition("?")
    scheme, (user, at, host) = uri["scheme"], address.rpartition("@")
    if at and not (scheme.lower().startswith("abfs") and ":" not in user):
        address = f"***@{host}"
    elif _TEXT_AS_PORT.match(address):
        address = "***"
    return f"{scheme}:{uri['slashes']}{address}{mark}{'***' if mark else ''}"


def fault_of(error: InputError | TransientError) -> dict[str, str]:
    """Turn an error into JSON data, which a Ray task or worker hands back past Ray's own wrapping and retries.

    Args:
        error: the error to turn into data.

    Returns:
        {"fault": "transient" or "input", "message": the error's text}.
    """
    return {"fault": "transient" if isinstance(error, TransientError) else "input", "message": str(error)}


def raise_fault(data: dict[str, str]) -> None:
    """Raise the error that `fault_of` turned into data; do nothing with data that hold no fault.

    Args:
        data: what a task or worker handed back.

    Raises:
        InputError: the data hold one; TransientError likewise.
    """
    if "fault" in data:
        kinds = {"input": InputError, "transient": TransientError}
        raise kinds[data["fault"]](data["message"])


class Stopped(KeyboardInterrupt):
    """The user or the system asked this process to stop. (Ray's native code passes on only a KeyboardInterrupt.)

    Args:
        number: the signal's number; the exit code is 128 more.
    """

    def __init__(self, number: int) -> None:
        name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        super().__init__(f"stopped by {name}")
        self.exit_code = 128 + number


def stopped(error: KeyboardInterrupt) -> Stopped:
    """The exception as what the signal means: Ray's native code raises a KeyboardInterrupt of its own instead.

    Args:
        error: a KeyboardInterrupt, whose notes are kept.
    """
    if isinstance(error, Stopped):
        return error
    out = Stopped(_came[-1] if _came else signal.SIGINT)
    for note in getattr(error, "__notes__", ()):
        out.add_note(note)
    return out


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise Stopped in the block at Ctrl-C or SIGTERM; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    _blocks.append(before)
    listen()
    try:
        yield
    finally:
        _blocks.pop()
        for number, handler in before.items():
            signal.signal(number, handler)


def listen() -> None:
    """Inside stop_on_signals, take the signals back from a library that has set its own handlers, as Ray does."""
    if not _blocks or threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and some schedulers ask for that
            signal.signal(number, _stop)


def _stop(number: int, _: FrameType | None) -> None:
    """Raise Stopped. A second signal ends the process at once, and so does a clean-up that takes too long."""
    signal.signal(number, signal.SIG_DFL)
    _came.append(number)
    error = Stopped(number)
    timer = threading.Timer(_SECONDS_TO_STOP, os._exit, [error.exit_code])
    timer.daemon = True
    timer.start()
    raise error
