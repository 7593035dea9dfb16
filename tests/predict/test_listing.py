"""The X-rays that a command line names: what is listed, what is passed over, and which id each gets."""

import importlib.util
import os
import re
import shutil
from pathlib import Path

import pytest

from chexseg_ray.errors import InputError
from chexseg_ray.predict.ids import image_id
from chexseg_ray.predict.listing import MADE, list_images

DICOM = bytes(128) + b"DICM" + bytes(60)


def listed(*words: object) -> list[tuple[str, str]]:
    return [(x_ray.cxr_id, x_ray.path) for x_ray in list_images([str(word) for word in words]).files]


def ids(*words: object) -> list[str]:
    return [cxr_id for cxr_id, _ in listed(*words)]


def files(folder: Path, *names: str) -> Path:
    """A folder with files of these names; what is in them is nobody's business here."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"an image")
    return folder


@pytest.fixture
def x_rays(tmp_path: Path) -> Path:
    return files(tmp_path / "x-rays", "one.jpg", "two.png", "patient00001/study1/view1_frontal.jpg", "notes.txt")


def test_files_folders_and_csv_files_are_listed(x_rays: Path, tmp_path: Path) -> None:
    shutil.copytree(x_rays, tmp_path, dirs_exist_ok=True)
    (tmp_path / "CheXpert-v1.0").mkdir()
    (tmp_path / "list.csv").write_text(
        "Path,Note\none.jpg,x\nCheXpert-v1.0/valid/patient1/study1/view1_frontal.jpg,y\nno/test/a.png,z\n"
    )
    assert listed(f"{tmp_path}/list.csv") == [
        ("one", f"{tmp_path}/one.jpg"),
        ("patient1_study1_view1_frontal", f"{tmp_path}/valid/patient1/study1/view1_frontal.jpg"),
        ("test_a", f"{tmp_path}/test/a.png"),
    ]
    (tmp_path / "no" / "test").mkdir(parents=True)
    shutil.copy(tmp_path / "two.png", tmp_path / "no" / "test" / "a.png")
    assert listed(f"{tmp_path}/list.csv")[2] == ("no_test_a", f"{tmp_path}/no/test/a.png"), (
        "a file that is where the CSV says"
    )
    assert ids(x_rays) == ["one", "patient00001_study1_view1_frontal", "two"]
    for word, error in (
        ("none.png", "is neither a file nor a folder"),
        ("empty", "has no DICOM file and none that ends in"),
        ("out.csv", "leaves the data root"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "out.csv").write_text("Path\n../secret.jpg\n")
        with pytest.raises(InputError, match=error):
            listed(f"{tmp_path}/{word}")
    with pytest.raises(InputError, match="name X-rays"):
        listed()
    os.symlink("/etc", tmp_path / "etc")
    (tmp_path / "link.csv").write_text("Path\netc/hostname\n")
    with pytest.raises(InputError, match="leads out of the CSV's folder"):
        listed(f"{tmp_path}/link.csv")


def test_a_discs_directory_is_none_of_its_x_rays(tmp_path: Path) -> None:
    (tmp_path / "1.2.840").write_bytes(DICOM)
    (tmp_path / "DICOMDIR").write_bytes(
        bytes(128) + b"DICM" + b"\x02\0\x02\0UI\x14\x001.2.840.10008.1.3.10" + bytes(60)
    )
    assert [x_ray.path for x_ray in list_images([str(tmp_path)]).files] == [f"{tmp_path}/1.2.840"]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_dicom_files_are_known_by_their_bytes_whatever_their_ending(
    scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = files(tmp_path / "in", "notes.txt", "list.csv", "x.png")
    for name in ("I0000001.IMA", "DX.1.2.3.img", "scan.txt", "1.2.840", "a.dcm"):
        (root / name).write_bytes(DICOM)
    (root / "headless").write_bytes(b"\x08\0\x05\0CS\x0a\0ISO_IR 100" + bytes(60))
    (root / "disc").mkdir()
    (root / "disc" / "DICOMDIR").write_bytes(
        bytes(128) + b"DICM" + b"\x02\0\x02\0UI\x14\x001.2.840.10008.1.3.10" + bytes(60)
    )
    found = [Path(path).name for _, path in listed(f"{scheme}{root}")]
    assert found == ["1.2.840", "DX.1.2.3.img", "I0000001.IMA", "a.dcm", "headless", "scan.txt", "x.png"]
    passed = capsys.readouterr().out
    assert "passed over 2 other files and 1 DICOM directories without an image (disc/DICOMDIR)" in passed


def test_a_file_that_may_not_be_read_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, real = files(tmp_path, "x.png", "secret.txt"), open

    def opened(path: str, mode: str) -> object:  # a test may run as root, whom no file refuses
        if path.endswith("secret.txt"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, mode)

    monkeypatch.setattr("builtins.open", opened)
    assert ids(root) == ["x"]
    assert "passed over 1 other files" in capsys.readouterr().out


def test_ids_are_chexperts_or_the_name_that_the_user_sees(tmp_path: Path, x_rays: Path) -> None:
    assert image_id("a b/c.d.png") == "a_b_c.d"
    assert image_id("x/patient1/study2/view1_frontal.jpg") == "patient1_study2_view1_frontal"
    assert image_id("inpatient1/study1/view1.png") == "inpatient1_study1_view1"
    assert image_id("1.2.840.113.5") != image_id("1.2.840.113.6"), "no ending, but a number"
    assert image_id(".png") == "_"
    assert image_id("-x.png") == "_x", "a cell that begins with - is a formula"
    for letter in "dя漢":
        assert len(image_id(f"{letter * 3}/" * 200 + "x.png").encode()) <= 200
    os.symlink(x_rays / "one.jpg", tmp_path / "mine.jpg")
    assert ids(f"{tmp_path}/mine.jpg") == ["mine"], "not what the link leads to"


def test_a_folder_within_chexperts_layout_gives_chexperts_ids(tmp_path: Path) -> None:
    root = files(tmp_path, *(f"valid/patient{i}/study1/view1_frontal.jpg" for i in (1, 2)))
    both = ["patient1_study1_view1_frontal", "patient2_study1_view1_frontal"]
    assert ids(*sorted(root.glob("valid/patient*"))) == ids(root / "valid") == both
    assert ids(root / "valid/patient2/study1") == ["patient2_study1_view1_frontal"]
    (root / "valid/patient1/list.csv").write_text("Path\nstudy1/view1_frontal.jpg\n")
    assert ids(root / "valid/patient1/list.csv") == ["patient1_study1_view1_frontal"]


@pytest.mark.parametrize(
    ("names", "words", "expected"),
    [
        (["x.png", "x.jpg", "y.png"], ["."], ["x_jpg", "x_png", "y"]),
        (["a1/1.png", "a2/1.png"], ["a1", "a2"], ["a1_1", "a2_1"]),
        (["a/b/1.png", "c/b/1.png"], ["a/b", "c/b/1.png"], ["a_b_1", "c_b_1"]),
        (["a/1.png", "a/1.jpg", "c/1.png"], ["a", "c"], ["a_1_jpg", "a_1_png", "c_1_png"]),
        (["x.png", "x.jpg", "x_png.png"], ["."], None),
        (["a b.png", "a_b.png", "a+b.png"], ["."], None),
        (
            ["valid/patient1/study1/view1.jpg", "small/patient1/study1/view1.jpg"],
            ["."],
            ["small_patient1_study1_view1", "valid_patient1_study1_view1"],
        ),
    ],
)
def test_files_that_would_share_an_id_are_told_apart(
    names: list[str], words: list[str], expected: list[str] | None, tmp_path: Path
) -> None:
    files(tmp_path, *names)
    found = ids(*(tmp_path / word for word in words))
    assert found == ids(*(tmp_path / word for word in words))
    assert len(set(found)) == len(names)
    assert expected is None or found == expected


def test_a_file_that_is_named_twice_is_one(x_rays: Path) -> None:
    (x_rays / "list.csv").write_text("Path\ntwo.png\ntwo.png\n")
    found = ids(x_rays / "one.jpg", x_rays / "one.jpg", x_rays, f"file://{x_rays}", x_rays / "list.csv")
    assert found == ["one", "patient00001_study1_view1_frontal", "two"]


def test_only_what_we_drew_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = files(tmp_path, "x.png", "predictions.json", "overlays/y.png", "made/z.png")
    files(root, "made/overlays/x.png", f"made/overlays/{MADE}")
    for word in (str(root), f"file://{root}"):
        assert ids(word) == ["made_z", "overlays_y", "x"]
        assert "passed over 1 other files and 1 overlays that jobs/predict.py drew" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"none that ends in .* beside 1 overlays that jobs/predict\.py drew"):
        listed(root / "made" / "overlays")


def test_links_are_counted_and_what_is_no_regular_file_is_not_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = files(tmp_path / "in", "x.png")
    os.mkfifo(root / "z.png")
    os.mkfifo(root / "1.2")
    os.symlink(tmp_path, root / "loop")
    os.symlink(tmp_path / "nowhere", root / "lost.png")
    assert [(x_ray.cxr_id, x_ray.fault) for x_ray in list_images([str(root)]).files] == [("lost", "missing"), ("x", "")]
    assert "passed over 2 other files and 1 linked folders" in capsys.readouterr().out
    with pytest.raises(InputError, match="is neither a file nor a folder"):
        listed(root / "z.png")


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = files(tmp_path, "x.png", "secret/y.png")
    real = os.scandir

    def scandir(path: str) -> object:  # a test may run as root, whom no folder refuses
        if path.endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match="secret: this folder may not be read"):
        listed(root)


def test_what_a_csv_names_and_is_no_file_is_missing(tmp_path: Path) -> None:
    files(tmp_path, "x.png", "folder.png/y.txt")
    os.mkfifo(tmp_path / "pipe.png")
    rows = ["x.png", "folder.png", "gone.png", "pipe.png", "x.png/below.png", f"{'n' * 300}.png"]
    (tmp_path / "list.csv").write_text("\n".join(["Path", *rows]))
    assert [x_ray.fault for x_ray in list_images([f"{tmp_path}/list.csv"]).files] == ["", *["missing"] * 5]


def test_a_name_that_is_no_utf8_is_a_fault_of_its_own_file_alone(tmp_path: Path) -> None:
    files(tmp_path, "x.png")
    bad = os.fsencode(tmp_path) + b"/bad\xff.png"
    Path(os.fsdecode(bad)).write_bytes(b"an image")
    for words in ([str(tmp_path)], [os.fsdecode(bad), f"{tmp_path}/x.png"]):
        assert [(x_ray.cxr_id, x_ray.fault) for x_ray in list_images(words).files] == [("bad_", "name"), ("x", "")]


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    files(tmp_path, "x.png")
    seen = set()
    for change in (
        lambda: None,
        lambda: (tmp_path / "x.png").write_bytes(b"longer than it was"),
        lambda: os.utime(tmp_path / "x.png", (1, 1)),
    ):
        change()
        seen.add(list_images([str(tmp_path)]).files[0].stamp)
        assert list_images([f"{tmp_path}/x.png"]).files[0].stamp in seen
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["x.dcm", "1.2.840", "x.DICOM", "x.IMA"])
def test_dicom_without_pydicom_is_told_before_anything_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(DICOM)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for word in (tmp_path, tmp_path / name):
        message = re.escape(f"{name}: a DICOM file needs pydicom") + r".*chexseg-ray\[dicom\]"
        with pytest.raises(InputError, match=message):
            listed(word)
    assert ids(files(tmp_path / "png", "x.png")) == ["x"]


def test_options_of_a_uri_stay_with_it(x_rays: Path) -> None:
    found = list_images([f"file://{x_rays}"])
    assert [x_ray.cxr_id for x_ray in found.files] == ["one", "patient00001_study1_view1_frontal", "two"]
    assert found.only_here is None, "a file:// URI says that every node has it"
    assert list_images([str(x_rays)]).only_here is not None
