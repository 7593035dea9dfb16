"""One driver per store, also where a file system has no locks, and nobody's file is written (faults.md 27)."""

import errno
import fcntl
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from chexseg_ray.cluster.claims import claim
from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_second_driver_of_a_store_is_told_who_holds_it(store: Store, tmp_path: Path) -> None:
    with claim(store), pytest.raises(TransientError, match=f"process {os.getpid()} on .* since "), claim(store):
        pass
    with claim(store):
        pass
    with (tmp_path / "store" / ".claim").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_claimed_by_a_file(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    without_locks(monkeypatch, number)
    with claim(store):
        with (
            pytest.raises(
                TransientError, match=rf"process {os.getpid()} on .*: wait for it, or remove \S+\.claim\.host"
            ),
            claim(store),
        ):
            pass
        assert "process" in Path(store.path(".claim")).read_text()
    assert store.names("") == [".claim"]
    with claim(store):
        pass


def test_the_claim_of_a_killed_driver_is_taken_over_on_its_host_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch, errno.ENOSYS)
    ended = {"pid": ended_pid(), "who": "process 1 on there"}
    store.put(".claim.host", json.dumps({**ended, "host": platform.node()}).encode())
    with claim(store):
        assert json.loads(store.get(".claim.host"))["pid"] == os.getpid()
    for content in (json.dumps({**ended, "host": "elsewhere"}).encode(), b"", b"[1]"):
        store.put(".claim.host", content)
        with pytest.raises(TransientError, match=r"in use by .*remove \S+\.claim\.host"), claim(store):
            pass
        assert store.get(".claim.host") == content


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "folder", "pipe"])
def test_a_claim_follows_no_link_and_writes_into_no_file_of_the_users(store: Store, tmp_path: Path, kind: str) -> None:
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    path = Path(store.path(".claim"))
    path.parent.mkdir()
    if kind == "link":
        path.symlink_to(thesis)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "new")
    elif kind == "hard link":
        path.hardlink_to(thesis)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(InputError, match=r"\.claim: is a link or no file.*: remove it"), claim(store):
        pass
    assert thesis.read_text() == "years of work"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_root_that_cannot_be_written_is_one_line_and_may_be_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(TransientError, match=f"cannot be claimed .*{os.strerror(number)}"), claim(store):
        pass
