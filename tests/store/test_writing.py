"""A file of a store is written whole or not at all, whatever the disk does (faults.md 22, 25)."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from chexseg_ray.errors import Stopped, TransientError
from chexseg_ray.store.filesystem import storage
from chexseg_ray.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def stopped(*_: object) -> None:
    raise Stopped(15)


@pytest.mark.parametrize("broken", ["os.fsync", "shutil.copyfileobj", "pathlib.Path.replace"])
@pytest.mark.parametrize(("fail", "error"), [(full, TransientError), (stopped, KeyboardInterrupt)])
def test_a_failed_write_leaves_no_temporary_file(
    broken: str, fail: Callable[..., None], error: type[BaseException], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a/b", b"old")
    with monkeypatch.context() as patched:
        patched.setattr(broken, fail)
        with pytest.raises(error):
            store.put("a/b", b"new")
    assert store.names("a") == ["b"]
    assert store.get("a/b") == b"old"


def test_a_reader_sees_the_old_file_or_the_new_one(store: Store, tmp_path: Path) -> None:
    """A reader that has opened the file before it is written again keeps what it had."""
    store.put("a/b", b"old" * 1000)
    with (tmp_path / "a" / "b").open("rb") as reader:
        store.put("a/b", b"new")
        assert reader.read() == b"old" * 1000
    assert store.get("a/b") == b"new"

    class HalfRead(io.BytesIO):
        """A file that breaks after its first half."""

        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                full()
            return super().read(5)

    with pytest.raises(TransientError, match="No space left"):
        store.put_stream("a/b", HalfRead(b"0123456789"))
    assert store.get("a/b") == b"new"


def test_a_file_in_the_way_of_a_folder_is_a_fault_of_the_storage(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("in the way")
    with pytest.raises(TransientError, match=r"a/b/c: cannot be written .*: check the store, its space"):
        store.put("a/b/c", b"data")
    assert (tmp_path / "a").read_text() == "in the way"
    assert os.listdir(tmp_path) == ["a"]


def test_a_name_with_a_line_break_is_named_in_one_line() -> None:
    with pytest.raises(TransientError) as caught, storage("read", "/store/a\nb"):
        raise OSError("no\nspace")
    assert str(caught.value).startswith("/store/a\\nb: cannot be read (no space): ")
