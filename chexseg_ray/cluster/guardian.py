"""Runs a job in a child process, so that somebody can say what happened when it ends without a word.

Ray's native code ends a driver at once, with exit code 1 and nothing printed, when the node's raylet has gone while the
driver uses Ray's object store; and the system may kill a driver for its memory. No code in the driver can help then.
"""

import atexit
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from chexseg_ray.errors import TransientError

LOST = "Ray's node process (raylet) has died: see raylet.out in its logs, check the memory, then run again"
_SET_PARENT_DEATH_SIGNAL = 1  # of prctl
_FORWARDED = (signal.SIGINT, signal.SIGTERM)


_state = {"guarded": False}  # in the child


class EndedError(TransientError):
    """The job's process was ended by something else than its own code, and said nothing."""


def is_guarded() -> bool:
    """Return whether this process is the child of in_child(), whose parent says what it leaves unsaid."""
    return _state["guarded"]


def in_child(run: Callable[[], int]) -> int:
    """Run a job in a child process; where the system has no such processes, here.

    Both processes return: the child with what `run` returns or raises, and this one with the child's exit code once it
    has ended. Signals are passed on to the child, which ends when this process does. Must be called before threads
    begin, in a program that ends with the returned exit code.

    Args:
        run: the job.

    Raises:
        EndedError: in this process. What `run` raises: in the child.
    """
    if sys.platform != "linux":
        return run()
    sys.stdout.flush()
    sys.stderr.flush()
    told, tell = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(told)
        os.setpgid(0, 0)  # so that a terminal's Ctrl-C comes once, from the parent
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        _state["guarded"] = True
        atexit.register(_tell_end, os.getpid(), tell)  # not called where native code ends the process
        return run()
    os.close(tell)
    status = _wait(child)
    os.set_blocking(told, False)
    code = os.waitstatus_to_exitcode(status)
    try:
        ended_itself = os.read(told, 1) == b"."
    except BlockingIOError:  # a process of the child's still holds the pipe
        ended_itself = False
    os.close(told)
    if code < 0:
        name = signal.Signals(-code).name
        raise EndedError(f"the job's process was ended by {name} (by hand, or for its memory): run again")
    if code == 1 and not ended_itself:
        raise EndedError(LOST)
    return code


def _tell_end(pid: int, tell: int) -> None:
    if os.getpid() == pid:
        os.write(tell, b".")


def _wait(child: int) -> int:
    """Wait for a process, and pass signals on to it; returns its status."""

    def forward(number: int, _: FrameType | None) -> None:
        os.kill(child, number)  # it is there, or a zombie, until waitpid returns

    before = {number: signal.getsignal(number) for number in _FORWARDED}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, forward)
    try:
        return os.waitpid(child, 0)[1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
