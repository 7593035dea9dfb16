"""A store, a CSV and a config are data: none of them runs code, leaves its root, or carries a secret into a log."""

import importlib
import json
import os
import pickle
import stat
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
import torch
from PIL import Image

from chexseg_ray.config.parse import load_config
from chexseg_ray.engine.training_state import from_safetensors
from chexseg_ray.errors import InputError, TransientError, quoted, shortened, without_credentials
from chexseg_ray.pretraining.checkpoints import read_state
from chexseg_ray.store.filesystem import Source, open_filesystem, refuse_credentials, storage
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


SECRET = "S3CR3T+key/of==the-test"
WITH_CREDENTIALS = [
    f"s3://key:{SECRET}@bucket/study",
    f"s3://{SECRET}@bucket",
    f"gs://{SECRET}@bucket/study",
    f"s3://key:{SECRET}/bucket/study",
    f"s3://bucket/study?access_key=AKIA&secret_key={SECRET}",
    f"s3://bucket/study?region=eu&Secret_Key={SECRET}",
    f"s3://bucket/study?{SECRET}",
    f"s3://bucket/study?endpoint_override=http://user:{SECRET}@host:9000",
    f"s3://bucket/study?endpoint_override=http%3A%2F%2Fuser%3A{SECRET}%40host",
    f"s3://bucket/study?endpoint_override=http://host?token={SECRET}",
    f"s3://bucket/study?region=eu#secret_key={SECRET}",
    f"abfs://container:{SECRET}@account.dfs.core.windows.net/study",
    f"abfs://container:{SECRET.replace('/', '')}@account.dfs.core.windows.net/study",
    f"abfss://:{SECRET}@account.blob.core.windows.net/study",
    f"abfs://account:{SECRET}@host:10000/study",
    f"ABFS://container:{SECRET}@account/study",
    f"abfs://container@account.dfs.core.windows.net/study?account_key={SECRET}",
    f"abfs://container@account.dfs.core.windows.net/study?sas_token={SECRET}",
    f"abfs://container@account.dfs.core.windows.net/study?sv=2024&sig={SECRET}",
    f"abfs://container@account.dfs.core.windows.net/study?client_secret={SECRET}",
    f"abfs://container@user:{SECRET}@host/study",
    f"https://account.blob.core.windows.net/container?sig={SECRET}",
    f"hdfs://user:{SECRET}@host/study",
]
WITHOUT = [
    "s3://bucket/study?region=eu-west-1&scheme=http&endpoint_override=http://127.0.0.1:9000",
    "s3://bucket/study?endpoint_override=localhost%3A9000&allow_bucket_creation=true",
    "abfs://container@account.dfs.core.windows.net/study",
    "abfss://container@account.dfs.core.windows.net/study?enable_tls=true",
    "abfs://account.dfs.core.windows.net/container/study",
    "gs://bucket/study",
]


@pytest.mark.parametrize("uri", WITH_CREDENTIALS)
def test_a_uri_with_a_secret_is_refused_without_repeating_it(uri: str) -> None:
    with pytest.raises(InputError, match=r"^store\.root: .* give the credentials in the environment") as caught:
        open_filesystem(uri, "store.root")
    assert "\n" not in str(caught.value)
    for part in (SECRET, SECRET.replace("/", ""), "key/of", "AKIA"):
        assert part not in str(caught.value)
        assert part not in without_credentials(f"error: {uri}: is wrong")
        assert part not in quoted([uri]) + shortened(f"{'x' * 60} {uri}")


@pytest.mark.parametrize(
    "text", ["s3://bucket/a", "http://host:9000: closed", "abfs://c@a/x:", "x://[::1]:80/", "a:/b"]
)
def test_a_uri_without_credentials_is_quoted_as_it_is(text: str) -> None:
    assert without_credentials(text) == shortened(text) == text


@pytest.mark.parametrize("uri", WITHOUT)
def test_a_uri_without_a_secret_is_accepted(uri: str) -> None:
    refuse_credentials(uri, "store.root")


PLACES = {
    "sweep: store.root": ("sweep.py", ["demo", "store.root={uri}"]),
    "sweep: data.root": ("sweep.py", ["demo", "store.root={here}", "data.root={uri}"]),
    "sweep: sweep.init": ("sweep.py", ["demo", "store.root={here}", "sweep.init=['{uri}']"]),
    "plan: sweep.init": ("sweep.py", ["--plan", "demo", "store.root={here}", "sweep.init=['{uri}']"]),
    "sweep: a file of another encoder": (
        "sweep.py",
        ["demo", "store.root={here}", "pretraining.imagenet_files={{resnet50: '{uri}'}}"],
    ),
    "sweep: a key": ("sweep.py", ["demo", "store.root={here}", "pretraining.normalisation={{'{uri}': chexpert}}"]),
    "sweep: classifier.init": ("sweep.py", ["demo", "store.root={here}", "classifier.init='{uri}'"]),
    "sweep: no such field": ("sweep.py", ["demo", "store.rot={uri}"]),
    "sweep: no mapping": ("sweep.py", ["demo", "pretraining.imagenet_files={uri}"]),
    "sweep: no YAML": ("sweep.py", ["demo", "store.root=[{uri}"]),
    "sweep: CONFIG": ("sweep.py", ["{uri}"]),
    "sweep: two files": ("sweep.py", ["demo", "{uri}"]),
    "report": ("report.py", ["demo", "store.root={uri}"]),
    "predict: MODEL": ("predict.py", ["{uri}", "{here}"]),
    "predict: IMAGE": ("predict.py", ["demo", "{uri}"]),
    "predict: --out": ("predict.py", ["demo", "{here}", "--out", "{uri}"]),
    "predict: a study": ("predict.py", ["demo", "store.root={uri}", "{here}/x.png"]),
    "export: MODEL": ("export.py", ["{uri}"]),
    "export: --out": ("export.py", ["demo", "--out", "{uri}"]),
    "export: two models": ("export.py", ["demo", "{uri}"]),
    "explain: --store": ("explain.py", ["evaluation/0123456789ab", "--store", "{uri}"]),
    "explain: ADDRESS": ("explain.py", ["{uri}/evaluation/0123456789ab"]),
    "explain: ROW": ("explain.py", ["{uri}/results.csv:3"]),
}
JOBS = {
    "sweep.py": "chexseg_ray.sweep.job:main",
    "report.py": "chexseg_ray.report.job:main",
    "explain.py": "chexseg_ray.report.job:explain",
    "predict.py": "chexseg_ray.predict.job:predict",
    "export.py": "chexseg_ray.predict.job:export",
}


@pytest.mark.parametrize("uri", [WITH_CREDENTIALS[0], WITH_CREDENTIALS[4], WITH_CREDENTIALS[7], WITH_CREDENTIALS[11]])
@pytest.mark.parametrize("place", PLACES)
def test_no_place_where_a_user_names_a_root_repeats_a_secret(
    place: str, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the command line is wrong in another way, and where a plan is printed."""
    monkeypatch.chdir(tmp_path)
    Image.new("L", (40, 40)).save("x.png")
    job, words = PLACES[place]
    module, _, function = JOBS[job].partition(":")
    code = getattr(importlib.import_module(module), function)([word.format(uri=uri, here=tmp_path) for word in words])
    out, err = capsys.readouterr()
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in (SECRET, "key/of", "AKIA", "http://user"):
        assert part not in out + err
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "x.png"]
    assert not [path for path in written if b"S3CR3T" in path.read_bytes()]


def test_azure_that_does_not_answer_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow makes an OSError of a refused connection, and its plain exception of credentials that are not there."""
    monkeypatch.setenv("PATH", str(tmp_path))  # the Azure SDK runs `az`
    nowhere = "blob_storage_authority=127.0.0.1:9&dfs_storage_authority=127.0.0.1:9"
    root = f"abfs://container@account.dfs.core.windows.net/study?{nowhere}"
    with pytest.raises(TransientError, match=r"study\?.*: cannot be reached \(.*DefaultAzureCredential") as caught:
        open_filesystem(root, "store.root")
    assert "\n" not in str(caught.value)
    with pytest.raises(TransientError, match=r"x: cannot be read \(Connection refused\)"), storage("read", "x"):
        raise ConnectionRefusedError("Connection refused")
    with pytest.raises(pa.ArrowInvalid), storage("read", "x"):
        raise pa.ArrowInvalid("bytes, not storage")


@pytest.mark.parametrize("root", ["a\0b", "~nobody-of-this-name/x"])
def test_a_root_that_is_no_path_is_refused_in_a_line(root: str) -> None:
    with pytest.raises(InputError, match=r"^data\.root.*: name a folder"):
        open_filesystem(root, "data.root")


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
