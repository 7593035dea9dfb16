"""Reading CheXpert's CSV by name, with every refusal."""

import re
import time

import numpy as np
import pytest

from chexseg_ray.data.chexpert import COLUMNS, read_csv, refuse_shared_patients
from chexseg_ray.data.pathologies import PATHOLOGIES
from chexseg_ray.errors import InputError


def csv(*rows: str, columns: tuple[str, ...] = COLUMNS) -> bytes:
    return ("\n".join([",".join(columns), *rows]) + "\n").encode()


def row(path: str, labels: str = ",,,,1.0,,,,,,,,,0.0", head: str = "Male,60,Frontal,AP") -> str:
    return f"{path},{head},{labels}"


TRAIN = "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg"


def test_columns_are_selected_by_name_and_lung_opacity_is_airspace_opacity() -> None:
    labels = ["", "1.0", "", "0.0", "-1.0", "", "", "", "", "", "", "", "", "1.0"]  # of the 14 label columns in order
    table = read_csv(csv(row(TRAIN, ",".join(labels))), "train.csv", PATHOLOGIES)
    values = table.loc[0]
    assert values["Enlarged Cardiomediastinum"] == 1
    assert values["Airspace Opacity"] == 0, "the column Lung Opacity"
    assert values["Lung Lesion"] == -1
    assert values["Support Devices"] == 1
    assert np.isnan(values["Edema"])
    reordered = csv(f"1.0,{TRAIN},0.0", columns=("Edema", "Path", "Airspace Opacity"))
    table = read_csv(reordered, "x.csv", ["Airspace Opacity", "Edema"])
    assert list(table.loc[0, ["Airspace Opacity", "Edema"]]) == [0, 1]


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0/", "CheXpert-v1.0-small/", "", "a/b/"])
def test_every_releases_prefix_works(prefix: str) -> None:
    table = read_csv(csv(row(f"{prefix}valid/patient64541/study1/view1_frontal.jpg")), "valid.csv", ["Edema"])
    assert table.loc[0, "path"] == "valid/patient64541/study1/view1_frontal.jpg"
    assert table.loc[0, "cxr_id"] == "patient64541_study1_view1_frontal"
    assert table.loc[0, "patient_id"] == "patient64541"


def test_the_test_csv_has_no_view_column() -> None:
    data = csv(
        "test/patient1/study1/view1_frontal.jpg,1.0",
        "test/patient1/study1/view2_lateral.jpg,0.0",
        columns=("Path", "Edema"),
    )
    assert list(read_csv(data, "test_labels.csv", ["Edema"])["view"]) == ["frontal", "lateral"]


@pytest.mark.parametrize(
    ("path", "view"),
    [
        ("test/p1/s1/view1_frontal.jpg", "frontal"),
        ("test/p1/s1/view2_lateral.jpg", "lateral"),
        ("test/p1/s1/Lateral.jpg", "lateral"),
        ("test/p1/s1/image_LATERAL_2.jpg", "lateral"),
        ("test/p1/frontal/1.jpg", "frontal"),
        ("test/frontal/s1/lateral.jpg", "lateral"),
        ("test/p1/s1/02aa804e-bde0afdd.jpg", None),
        ("test/p1/s1/bilateral.jpg", None),
        ("test/p1/s1/frontals.jpg", None),
    ],
)
def test_without_a_column_the_path_tells_the_view_or_nothing_does(path: str, view: str | None) -> None:
    table = read_csv(csv(f"{path},1.0", columns=("Path", "Edema")), "test_labels.csv", ["Edema"])
    assert table.loc[0, "view"] == (view or "frontal")
    assert table.loc[0, "view_is_known"] == (view is not None)
    whole = read_csv(csv(f"{path},Lateral,1.0", columns=("Path", "Frontal/Lateral", "Edema")), "x.csv", ["Edema"])
    assert whole.loc[0, "view"] == "lateral"
    assert whole.loc[0, "view_is_known"]


def test_bom_and_crlf_work() -> None:
    data = b"\xef\xbb\xbf" + csv(row(TRAIN)).replace(b"\n", b"\r\n")
    assert len(read_csv(data, "train.csv", PATHOLOGIES)) == 1


# The first label is 2.0, and the header names its column Enlarged Cardiomediastinum instead of No Finding.
SWAPPED = (
    csv(row(TRAIN, "2.0" + "," * 13))
    .replace(b"No Finding", b"X")
    .replace(b"Enlarged Cardiomediastinum", b"No Finding")
    .replace(b",X,", b",Enlarged Cardiomediastinum,")
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "train.csv: no CSV"),
        (csv(), "has no rows"),
        (csv(row(TRAIN)).replace(b"Edema", b"Oedema"), "no column 'Edema'"),
        (csv(row(TRAIN), row(TRAIN)), "row 3: Path .* repeats row 2: remove one row"),
        (
            csv(row(TRAIN), row(TRAIN.replace(".jpg", ".png"))),
            r"Paths .*\.jpg' \(row 2\) and .*\.png' \(row 3\) give the same cxr_id .*: rename one file",
        ),
        (SWAPPED, "row 2: Enlarged Cardiomediastinum is '2.0'"),
        (csv(row(TRAIN, ",yes" + "," * 12)), "row 2: Enlarged Cardiomediastinum is 'yes'"),
        (csv(row("../../etc/passwd")), "row 2: Path .* leaves the data root"),
        (csv(row("/etc/passwd")), "leaves the data root"),
        (csv(row("train/../../x.jpg")), "leaves the data root"),
        (csv(row("C:/train/x.jpg")), "leaves the data root"),
        (csv(row("elsewhere/x.jpg")), "names no train/"),
        (csv(row(TRAIN, head="Male,60,Oblique,AP")), "Frontal/Lateral is 'oblique'"),
        (b"a,b\n1,2\n", "no column 'Path'"),
        (csv(row(TRAIN))[:-12], "row 2: has 11 cells, the header 19: the file is cut"),
        (csv(row(TRAIN), columns=(*COLUMNS[:-1], "Edema")), "two columns 'Edema'"),
        (csv(row(TRAIN), "", row(TRAIN)), "row 3: has 0 cells"),
    ],
)
def test_a_fault_is_named_with_its_row(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_csv(data, "train.csv", PATHOLOGIES)


def test_a_patient_in_two_files_is_refused() -> None:
    with pytest.raises(InputError, match=r"a.csv and c.csv share 2 patients \(p1, p2\)"):
        refuse_shared_patients({"a.csv": ["p1", "p2", "p3"], "b.csv": ["p9"], "c.csv": ["p2", "p1"]})


OTHER = b"file,pid,projection,opac,tube\nimg/a.png,p1,Frontal,1,0\nimg/b.png,p1,Lateral,0,\nimg/c.png,p2,Frontal,-1,1\n"
NAMES = {
    "Path": ["file"],
    "Patient": ["patient", "pid"],
    "Frontal/Lateral": ["projection"],
    "Airspace Opacity": ["opac"],
    "Support Devices": ["tube"],
}


def test_another_data_set_is_read_by_the_names_of_its_columns_in_any_folders() -> None:
    table = read_csv(OTHER, "own.csv", ["Support Devices", "Airspace Opacity"], NAMES)
    assert list(table["path"]) == ["img/a.png", "img/b.png", "img/c.png"]
    assert list(table["cxr_id"]) == ["img_a", "img_b", "img_c"]
    assert list(table["patient_id"]) == ["p1", "p1", "p2"]
    assert list(table["view"]) == ["frontal", "lateral", "frontal"]
    assert table["Airspace Opacity"].tolist() == [1.0, 0.0, -1.0]
    assert np.isnan(table["Support Devices"][1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"Path": ["fyle"]},
            "has no column 'fyle': give CheXpert's format, or name the column of Path in data.columns",
        ),
        ({"Airspace Opacity": ["Lung Opacity"]}, "has no column 'Lung Opacity'"),
        ({"Patient": ["nobody"]}, "name the column of Patient"),
        ({"Frontal/Lateral": ["opac"]}, "row 2: opac is '1': write Frontal or Lateral"),
    ],
)
def test_a_column_that_is_not_there_is_named(change: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read_csv(OTHER, "own.csv", ["Airspace Opacity"], NAMES | change)


def test_a_row_without_patient_is_refused_and_so_is_another_layout_without_a_column_of_patients() -> None:
    with pytest.raises(InputError, match="row 3: pid is blank"):
        read_csv(OTHER.replace(b"b.png,p1", b"b.png, "), "own.csv", ["Airspace Opacity"], NAMES)
    without = {name: column for name, column in NAMES.items() if name != "Patient"}
    with pytest.raises(InputError, match="name the column of patients as Patient"):
        read_csv(OTHER, "own.csv", ["Airspace Opacity"], without)


LONG = "9" * 5000


@pytest.mark.parametrize(
    "data",
    [
        csv(row(TRAIN, ",".join([LONG] * 14))),
        csv(row(f"other/{LONG}.jpg")),
        csv(row(f"/train/{LONG}.jpg")),
        csv(*[row(f"train/p/s/{LONG}.jpg")] * 2),
        csv(row(f"train/p/s/{LONG}.jpg"), row(f"train/p/s/{LONG}.png")),
        csv(row(TRAIN, head=f"Male,60,{LONG},AP")),
        csv("", columns=(*COLUMNS, LONG, LONG)),
    ],
    ids=["label", "layout", "absolute", "twice", "one id", "view", "column"],
)
def test_what_a_message_quotes_of_a_file_is_cut(data: bytes) -> None:
    with pytest.raises(InputError) as caught:
        read_csv(data, "train.csv", ["Edema", "No Finding"])
    assert "999" in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_a_long_header_is_refused_at_once() -> None:
    start = time.process_time()
    with pytest.raises(InputError, match="has two columns ''"):
        read_csv(b"Path" + b"," * 300_000, "train.csv", ["Edema"])
    assert time.process_time() - start < 5, "it took minutes when each name was compared with all before it"
