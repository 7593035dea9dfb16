"""Links below a data root: those that lead out of it are refused before an image is opened (faults.md 9)."""

from pathlib import Path

import pandas as pd
import pyarrow.fs as pafs
import pytest

from chexseg_ray.errors import InputError
from chexseg_ray.stages.manifest import _refuse_outside
from chexseg_ray.store.filesystem import Source


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_link_out_of_the_data_root_is_refused_and_one_within_it_is_not(link: str, tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "set" / "p1", root / "set" / "p3", outside):
        folder.mkdir(parents=True)
        (folder / "x.png").write_bytes(b"x")
    if link == "file":
        (root / "set" / "p2").mkdir()
        (root / "set" / "p2" / "x.png").symlink_to(outside / "x.png")
        (root / "set" / "p3" / "y.png").symlink_to(root / "set" / "p1" / "x.png")
    else:
        (root / "set" / "p2").symlink_to(outside)
        (root / "set" / "p4").symlink_to(root / "set" / "p3")
    source = Source(pafs.LocalFileSystem(), str(root))
    inside = ["p1/x.png", "p3/y.png" if link == "file" else "p4/x.png", "p1/not_there.png"]
    _refuse_outside(source, "set/train.csv", pd.Series(inside))
    with pytest.raises(InputError, match=r"set/train.csv row 5: Path 'p2/x.png' leads out of the data root"):
        _refuse_outside(source, "set/train.csv", pd.Series([*inside, "p2/x.png"]))
