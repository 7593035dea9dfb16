"""What explains a number refuses in one line."""

from pathlib import Path

import pytest

from chexseg_ray.errors import InputError
from chexseg_ray.report.explain import find_records

HEAD = "method,trial,pathology,aggregation,iou,record"


@pytest.mark.parametrize("record", ["../../etc", "evaluation/" + "9" * 5000, "evaluation/0123456789ab/..", "x"])
@pytest.mark.parametrize("line", [2, 3], ids=["of a trial", "over trials"])
def test_a_record_of_a_results_csv_that_is_no_address_is_refused(record: str, line: int, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(f"{HEAD}\ngradcam,0,Edema,pooled,0.1,{record}\ngradcam,,Edema,pooled,0.1,\n")
    with pytest.raises(InputError, match=r"line 2: its record .* is no address: write the report again") as caught:
        find_records(f"{path}:{line}", None)
    assert len(str(caught.value)) < 500


def test_what_names_no_record_is_quoted_in_one_line() -> None:
    with pytest.raises(InputError, match="names no record") as caught:
        find_records("a\nb" + "c" * 5000, None)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
