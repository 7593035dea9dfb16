"""What a local Ray is given on machines that are not as Ray expects them (faults.md 36)."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from chexseg_ray.cluster import machine
from chexseg_ray.errors import InputError


@pytest.mark.parametrize(
    ("files", "groups", "cpus"),
    [
        ({"cpu.max": "100000 100000"}, "0::/\n", 1),
        ({"cpu.max": "max 100000"}, "0::/\n", 8),
        ({"job/step/cpu.max": "max 100000", "job/cpu.max": "350000 100000"}, "0::/job/step\n", 3),
        ({"cpu.max": "20000 100000"}, "0::/\n", 1),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "3:cpu,cpuacct:/docker/1\n", 2),
        ({"cpu/docker/1/cpu.cfs_quota_us": "-1", "cpu/docker/1/cpu.cfs_period_us": "100000"}, "3:cpu:/docker/1\n", 8),
        ({"cpu.max": "no number"}, "", 8),
        ({}, "nonsense\n", 8),
    ],
)
def test_the_quota_of_a_container_counts(
    files: dict[str, str], groups: str, cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    listing = tmp_path / "listing"
    listing.write_text(groups)
    own_groups = machine._own_groups
    monkeypatch.setattr(machine, "_own_groups", lambda _: own_groups(listing))
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert machine.cpus_here() == cpus


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("/tmp/" + "x" * 90, "is too long for Ray's sockets"),
        ("/tmp/ü", "has letters that Ray cannot use"),
        ("/proc/self/fdinfo/x", "cannot be written"),
    ],
)
def test_a_folder_that_ray_cannot_use_is_named_or_replaced(
    folder: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.getuid() == 0 and "proc" in folder:
        monkeypatch.setattr(os, "access", lambda path, _: not str(path).startswith("/proc"))  # root may do anything
    monkeypatch.setenv("RAY_TMPDIR", folder)
    with pytest.raises(InputError, match=rf"^RAY_TMPDIR={folder}: {words}.*: name a short folder of your own"):
        machine.ray_folder()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", folder)
    own = machine.ray_folder()
    assert own == f"/tmp/chexseg_ray_{os.getuid()}/ray"
    assert stat.S_IMODE(os.lstat(Path(own).parent).st_mode) & 0o022 == 0, "no other user writes there"
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert machine.ray_folder() in (None, own), "Ray's own choice, where /tmp/ray may be written"


def test_a_home_that_cannot_be_written_gets_a_token_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert machine.token_file() is None, "Ray may write its own"
    for home in ("/proc", None):
        monkeypatch.setenv("HOME", home) if home else monkeypatch.delenv("HOME")
        folder = machine.token_file()
        assert folder is not None
        path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert path.parent == Path(folder.name)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(path.read_text()) == 64
        assert machine.token_file() is None, "there is one now"
        folder.cleanup()
        del os.environ["RAY_AUTH_TOKEN_PATH"]  # monkeypatch.delenv would set it again after the test


def test_a_machine_without_shared_memory_is_told_so(tmp_path: Path) -> None:
    machine.refuse_no_shared_memory(tmp_path)
    with pytest.raises(InputError, match=r"shm: is not there .*--shm-size=2g"):
        machine.refuse_no_shared_memory(tmp_path / "shm")


def test_only_a_process_that_is_gone_or_a_zombie_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not machine.has_ended(os.getpid())
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert machine.has_ended(child.pid)
    child.wait()
    assert machine.has_ended(child.pid)
    assert machine.has_ended(10**30)

    def of_another_user(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", of_another_user)
    assert not machine.has_ended(2**22 + 1), "the system may hide it in /proc (hidepid), and its claim holds"
