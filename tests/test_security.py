"""A store, a CSV and a config are data: none of them runs code, leaves its root, or carries a secret into a log."""

import json
import os
import pickle
import stat
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch

from chexseg_ray.config.parse import load_config
from chexseg_ray.engine.training_state import from_safetensors
from chexseg_ray.errors import InputError, TransientError
from chexseg_ray.pretraining.encoders import read_state
from chexseg_ray.store.filesystem import Source, open_filesystem
from chexseg_ray.store.step import FileEntry, Record, Step
from chexseg_ray.store.store import Store

REPOSITORY = Path(__file__).resolve().parent.parent
DEMO = REPOSITORY / "configs" / "demo.yaml"


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.place),)


def hostile(store: Store, path: str, data: bytes = b"x") -> Record:
    """A record whose file lies, or seems to lie, at `path`."""
    step = Step("a", 1, {})
    record = Record("a", 1, step.fingerprint, {}, {}, "attempt", (FileEntry(path, len(data), ""),), 1, 0, {}, {})
    store.put(f"{step.address}/record.json", record.to_json())
    return record


@pytest.mark.parametrize("path", ["../../../outside", "/etc/passwd", "part/../../../../outside", ""])
def test_a_record_whose_file_leaves_its_attempt_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    store = Store.open(str(tmp_path / "store"))
    hostile(store, path)
    found = store.find(Step("a", 1, {}))
    assert found is None, "a record that names such a file is no record"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../secret", "fingerprint": "."},
        {"name": "b"},
        {"attempt": 5},
        {"attempt": "a/../../b"},
        {"files": [{"path": None, "size": 1, "sha256": ""}]},
    ],
)
def test_a_record_that_is_not_its_addresss_own_counts_as_absent(change: dict[str, object], tmp_path: Path) -> None:
    store, step = Store.open(str(tmp_path / "store")), Step("a", 1, {})
    record = Record("a", 1, step.fingerprint, {}, {}, "attempt", (), 1, 0, {}, {})
    store.put(f"{step.address}/record.json", json.dumps(json.loads(record.to_json()) | change).encode())
    assert store.find(step) is None
    assert store.find_all([step]) == {}
    store.put(f"{step.address}/record.json", b"[" * 100_000)
    assert store.find(step) is None


def test_a_pickle_in_a_store_is_never_opened_as_one(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    torch.save({"weight": Trap(tmp_path / "sprung")}, tmp_path / "weights.pt")
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever safetensors calls it
        from_safetensors(trap)
    with pytest.raises(ValueError, match="save only its state_dict"):
        read_state((tmp_path / "weights.pt").read_bytes())
    store = Store.open(str(tmp_path / "store"))
    store.put("a/0123456789ab/record.json", trap)
    assert store.find_address("a/0123456789ab") is None
    assert not (tmp_path / "sprung").exists()


def test_no_module_of_the_package_can_unpickle() -> None:
    for path in (REPOSITORY / "chexseg_ray").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "pickle.load" not in text, path
        assert "allow_pickle=True" not in text, path
        assert "weights_only=False" not in text, path
        assert "yaml.load(" not in text or "Loader=_Loader" in text, path


@pytest.mark.parametrize("field", ["weak_csv", "expert_csv", "expert_masks", "test_csv", "test_masks"])
@pytest.mark.parametrize(
    "name", ["../secret.csv", "/etc/passwd", "a/../../secret.csv", "C:/secret.csv", "a\\..\\..\\secret.csv"]
)
def test_a_source_of_the_config_cannot_leave_the_data_root(field: str, name: str) -> None:
    with pytest.raises(InputError, match=f"data.{field}"):
        load_config(DEMO, [f"data.{field}={json.dumps(name)}"])


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".hidden", ""])
def test_a_report_cannot_be_named_out_of_the_store(name: str) -> None:
    with pytest.raises(InputError, match=r"report.name"):
        load_config(DEMO, [f"report.name={json.dumps(name)}"])


@pytest.mark.parametrize(
    "uri",
    ["s3://key:secret@bucket/study", "s3://key@bucket", "gs://token@bucket/study", "s3://key:a/slash@bucket/study"],
)
def test_a_uri_with_a_secret_is_refused_without_repeating_it(uri: str) -> None:
    with pytest.raises(InputError, match=r"store\.root") as caught:
        open_filesystem(uri, "store.root")
    assert uri.partition("://")[2].partition("@")[0] not in str(caught.value)


def test_storage_that_refuses_is_worth_another_try_and_says_where(tmp_path: Path) -> None:
    """An endpoint that nobody answers at: connection refused, on every way into a store and a data root."""
    keys = {"access_key": "someone", "secret_key": "a-secret-of-the-test"}
    gone = pafs.S3FileSystem(
        **keys,
        endpoint_override="127.0.0.1:9",
        scheme="http",
        connect_timeout=0.2,
        request_timeout=0.2,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    store = Store(gone, "bucket/study", "s3://bucket/study")
    step = Step("a", 1, {})
    ways = [
        lambda: store.find(step),
        lambda: store.find_all([step]),
        lambda: store.put("x", b""),
        lambda: store.names("a"),
        lambda: store.exists("x"),
        lambda: store.delete("x"),
        lambda: Source(gone, "bucket/data").read("train.csv"),
    ]
    for way in ways:
        with pytest.raises(TransientError, match="bucket/") as caught:
            way()
        assert "a-secret-of-the-test" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_token_that_a_local_ray_makes_is_its_owners_alone(tmp_path: Path) -> None:
    from chexseg_ray.cluster.machine import close_token_file

    token = tmp_path / "auth_token"
    token.write_text("token")
    token.chmod(0o644)
    close_token_file(token)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    close_token_file(tmp_path / "none")
