"""jobs/store.py: what is damaged in a store, and what is left over in it."""

import fcntl
import shutil
from pathlib import Path

import pytest

from chexseg_ray.store.step import Record, Step
from chexseg_ray.store.store import Store
from chexseg_ray.upkeep.job import main

IMAGES = Step("images", 1, {"size": 32})
BUILT = Step("segmentation", 2, {"p": 0.5}, {"images": IMAGES})
UNFINISHED = Step("segmentation", 2, {"p": 0.9}, {"images": IMAGES})


def build(store: Store, step: Step) -> Record:
    attempt = store.new_attempt(step)
    entry = attempt.write("weights.bin", b"weights of " + step.address.encode())
    inputs = {role: child.fingerprint for role, child in step.inputs.items()}
    record = Record(
        step.name, step.version, step.fingerprint, dict(step.config), inputs, attempt.name, (entry,), 1, 0, {}, {}
    )
    store.commit(record)
    return record


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two built steps and one that is not finished, with leftovers, and files of a user between them."""
    store = Store.open(str(tmp_path / "store"))
    for step in (IMAGES, BUILT):
        build(store, step)
    for path in LEFT_OVER:
        store.put(path, b"left over")
    for path in KEPT:
        store.put(path, b"keep me")
    return store


LEFT_OVER = (
    f"{BUILT.address}/0123abcd/weights.bin",
    f"{BUILT.address}/state/000000004-0123abcd-0123456789abcdef",
    f"{BUILT.address}/failed.json",
    f"{IMAGES.address}/record.json.0123abcd.tmp",
    f"{UNFINISHED.address}/89abcdef/weights.bin",
    ".ray/segmentation/x.json",
    "report/tiny/index.html.0123abcd.tmp",
)
KEPT = (
    f"{UNFINISHED.address}/state/000000004-0123abcd-0123456789abcdef",
    f"{UNFINISHED.address}/failed.json",
    f"{BUILT.address}/notes.txt",
    "report/tiny/index.html",
    "report/tiny/notes.tmp",
    "segmentation/readme/notes.txt",
    "thesis/segmentation.tex",
)


def test_a_whole_store_is_verified(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", store.root]) == 0
    assert "2 records and 2 files (0.0 MB) compared; 1 steps are not finished" in capsys.readouterr().out


def test_every_damaged_file_and_record_is_named(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    record = store.find(BUILT)
    assert record is not None
    store.put(f"{BUILT.address}/{record.attempt}/weights.bin", b"x" * record.files[0].size)
    path = Path(store.path(f"{IMAGES.address}/record.json"))
    path.write_bytes(path.read_bytes().replace(b'"size": 32', b'"size": 64'))
    assert main(["verify", store.root]) == 2
    printed = capsys.readouterr()
    assert f"damaged: {store.root}/{BUILT.address}/{record.attempt}/weights.bin: its bytes are not" in printed.out
    assert f"damaged: {store.root}/{IMAGES.address}/record.json: is no record" in printed.out
    assert printed.err == f"error: {store.root}: 2 files are damaged: delete the folders that the lines name\n"


def test_what_is_left_over_is_listed_and_deleted_only_when_asked(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["clean", store.root]) == 0
    out = capsys.readouterr().out
    kinds = [line.split("  ")[1].strip() for line in out.splitlines() if line.startswith("  ")]
    assert sorted(kinds) == ["attempt", "attempt", "logs", "old error", "state", "temporary file", "temporary file"]
    assert "left over: 7, 0.0 MB" in out
    assert "nothing was deleted" in out
    assert all(store.exists(path) for path in (*LEFT_OVER, *KEPT))
    assert main(["clean", store.root, "--delete"]) == 0
    assert "deleted: 7" in capsys.readouterr().out
    assert not any(store.exists(path) for path in LEFT_OVER)
    assert all(store.exists(path) for path in KEPT)
    assert main(["verify", store.root]) == 0
    assert main(["clean", store.root]) == 0
    assert "left over: 0" in capsys.readouterr().out


def test_a_store_that_a_run_uses_is_listed_and_not_cleaned(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with Path(store.path(".claim")).open("w") as stream:
        stream.write("process 1 on there")
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert main(["clean", store.root]) == 0
        assert main(["clean", store.root, "--delete"]) == 75
    assert "in use by process 1 on there" in capsys.readouterr().err
    assert all(store.exists(path) for path in LEFT_OVER)


def test_an_object_store_is_cleaned_by_its_cluster_or_on_demand(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(Store, "is_local", property(lambda _: False))
    assert main(["clean", store.root, "--delete"]) == 2
    assert "submit this as a job, or add --unclaimed" in capsys.readouterr().err
    assert main(["clean", store.root, "--delete", "--unclaimed"]) == 0
    assert not any(store.exists(path) for path in LEFT_OVER)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "write verify STORE, or clean STORE"),
        (["verify"], "write verify STORE, or clean STORE"),
        (["clean", ""], "write verify STORE, or clean STORE"),
        (["verify", "{}/none"], "is no folder"),
        (["verify", "{}", "demo"], "verify takes one STORE"),
        (["verify", "{}", "--delete"], "verify takes one STORE"),
        (["clean", "{}", "sweep.trials=1"], "an override without a config"),
        (["clean", "{}", "no_config"], "no_config: is neither a file nor a config"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_2(
    arguments: list[str], words: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(store.root) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_store_whose_files_cannot_be_listed_is_left_alone(store: Store) -> None:
    shutil.rmtree(store.path(""))
    assert main(["clean", store.root, "--delete"]) == 2
    assert not Path(store.root).exists()
