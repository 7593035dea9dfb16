"""What this machine gives a local Ray: CPUs, GPUs, a folder for its sockets and logs, a token file, shared memory."""

import os
import secrets
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from chexseg_ray.errors import InputError

_SOCKET_BYTES = 107  # the longest path of a Unix socket
_SESSION = "/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"  # below Ray's folder
_CGROUPS = Path("/sys/fs/cgroup")


def cpus_here() -> int:
    """The number of CPUs that this process may use, at least 1: its affinity, or a container's quota if it is less."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = list(_quotas(_CGROUPS, _own_groups(Path("/proc/self/cgroup"))))
    return max(1, int(min([allowed, *quotas])))


def _own_groups(listing: Path) -> list[str]:
    """The paths of this process's control groups, as /proc/self/cgroup lists them; none where there is no such file."""
    try:
        lines = listing.read_text().splitlines()
    except OSError:
        return []
    return [parts[2] for parts in (line.split(":", 2) for line in lines) if len(parts) == 3]


def _quotas(root: Path, groups: list[str]) -> Iterator[float]:
    """Yield the CPU quotas, in CPUs, of control groups (version 2 and 1) and of those above them."""
    folders = {root, root / "cpu", root / "cpu,cpuacct"}
    for base in tuple(folders):
        for group in groups:
            inside = Path(group.strip("/"))
            folders |= {base / part for part in (inside, *inside.parents)}
    for folder in folders:
        try:
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()[:2]
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            if quota.strip() != "max" and int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue


def has_ended(pid: int) -> bool:
    """Return whether a process of this machine is gone, or a zombie that its parent has not collected, by its `pid`."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # or no process id at all
        return True
    except OSError:  # another user's; the system may hide it in /proc
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False


def gpus_here() -> int:
    """The number of GPUs that nvidia-smi lists and CUDA_VISIBLE_DEVICES does not hide; 0 without that tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listed = subprocess.run([tool, "--list-gpus"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    present = sum(line.startswith("GPU ") for line in listed.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    names = [name.strip() for name in visible.split(",")]
    hidden_from = next((i for i, name in enumerate(names) if not name or name.startswith("-")), len(names))
    return min(present, hidden_from)  # CUDA takes no notice of what follows an invalid entry such as -1


def ray_folder() -> str | None:
    """The folder for the sockets and logs of a local Ray.

    Ray's own choice is `ray` below RAY_TMPDIR, TMPDIR or /tmp. Where the last two cannot be used (too long for a
    socket, not ASCII, or another user's), it is a folder of this user in /tmp.

    Returns:
        The folder; None where Ray's own choice can be used.

    Raises:
        InputError: RAY_TMPDIR cannot be used, or no folder in /tmp can be made.
    """
    asked = os.environ.get("RAY_TMPDIR")
    if asked is not None:
        fault = _fault_of(Path(asked) / "ray")
        if fault:
            raise InputError(
                f"RAY_TMPDIR={asked}: {fault}: name a short folder of your own, such as /tmp/{os.getuid()}"
            )
        return None
    if not _fault_of(Path(os.environ.get("TMPDIR", "/tmp")) / "ray"):
        return None
    own = Path(f"/tmp/chexseg_ray_{os.getuid()}")
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
    except OSError as error:
        raise InputError(f"{own}: cannot be made ({error.strerror}): set RAY_TMPDIR to a short folder") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise InputError(f"{own}: is not a folder of this user: set RAY_TMPDIR to a short folder")
    return f"{own}/ray"  # which Ray opens to all users


def _fault_of(folder: Path) -> str:
    """Why a folder cannot hold Ray's sockets and logs; empty where it can. Makes nothing."""
    if not str(folder).isascii():
        return "has letters that Ray cannot use"
    if len(str(folder.absolute()) + _SESSION) > _SOCKET_BYTES:
        longest = _SOCKET_BYTES - len(_SESSION) - len("/ray")
        return f"is too long for Ray's sockets (at most {longest} characters)"
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return "cannot be written"
    return ""


def refuse_no_shared_memory(folder: Path = Path("/dev/shm")) -> None:
    """Check that there is shared memory, which Ray and PyTorch need.

    Args:
        folder: where the system has it.

    Raises:
        InputError: it is not there or cannot be written.
    """
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        remedy = "mount it (mount -t tmpfs tmpfs /dev/shm), or start the container with --shm-size=2g"
        raise InputError(f"{folder}: is not there or cannot be written, and Ray keeps its objects there: {remedy}")


def token_file() -> tempfile.TemporaryDirectory[str] | None:
    """Make a token for a local Ray in a temporary folder, if Ray cannot write its own into HOME.

    RAY_AUTH_TOKEN_PATH then names it, for this process and the processes that it starts. Only its owner can read it.

    Returns:
        The folder, to be cleaned up after Ray has ended; None where Ray has a token or may write one.
    """
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return None
    if "HOME" in os.environ and _can_write(Path("~/.ray").expanduser()):
        return None
    folder = tempfile.TemporaryDirectory(prefix="chexseg_token_", ignore_cleanup_errors=True)
    path = Path(folder.name) / "auth_token"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(descriptor, secrets.token_hex(32).encode())
    os.close(descriptor)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    return folder


def _can_write(folder: Path) -> bool:
    """Make a folder, if it is not there, and tell whether files can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def close_token_file(path: Path) -> None:
    """Let only its owner read a token file, because a local Ray makes one that every user of the machine can read.

    Args:
        path: the file; one that is not there, or belongs to another user, is left unchanged.
    """
    if path.is_file() and path.stat().st_uid == os.getuid():
        path.chmod(0o600)
