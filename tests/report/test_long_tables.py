"""Every number for other programs: no row is lost to a blank key, and each column is explained."""

import csv
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from chexseg_ray.config.schema import StudyConfig

KEYS = ["method", "init", "p", "weak_n", "num_expert", "architecture", "encoder", "trial", "pathology", "aggregation"]


def test_grouping_by_any_key_loses_no_row(whole: tuple[Path, StudyConfig, Path]) -> None:
    for name in ("results.csv", "estimates.csv"):
        rows = pd.read_csv(whole[2] / name)
        keys = [key for key in KEYS if key in rows]
        assert not rows[keys].isna().to_numpy().any()
        assert rows.groupby(keys).size().sum() == len(rows)
    assert set(rows["method"]) == {"expert", "gradcam", "irnet"}
    assert set(rows["num_expert"]) == {"all"}


def test_an_estimate_is_one_row_with_the_numbers_of_its_three_rows(whole: tuple[Path, StudyConfig, Path]) -> None:
    results, estimates = pd.read_csv(whole[2] / "results.csv"), pd.read_csv(whole[2] / "estimates.csv")
    keys = [key for key in KEYS if key in estimates]
    assert not estimates.duplicated(keys).any()
    of_all = results[results.trial == "all"]
    assert len(of_all) == 3 * len(estimates)
    for name, over in (("trials", "trials"), ("patients", "patients"), ("both", "trials and patients")):
        rows = of_all[of_all.interval.str.startswith(f"{over},")].merge(estimates, on=keys, suffixes=("", "_wide"))
        assert len(rows) == len(estimates)
        for column, wide in (("iou", "iou_wide"), ("low", f"{name}_low"), ("high", f"{name}_high"), ("n", f"{name}_n")):
            assert (rows[column].eq(rows[wide]) | (rows[column].isna() & rows[wide].isna())).all(), wide


def test_parquet_has_the_rows_of_the_csv_with_their_types(whole: tuple[Path, StudyConfig, Path]) -> None:
    table = pq.read_table(whole[2] / "results.parquet")
    with (whole[2] / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert table.column_names == list(rows[0])
    for found, row in zip(table.to_pylist(), rows, strict=True):
        assert {name: "" if value is None else str(value) for name, value in found.items()} == row
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["p"], types["iou"], types["n"], types["trial"]) == ("double", "double", "int64", "string")


def test_every_column_is_explained(whole: tuple[Path, StudyConfig, Path]) -> None:
    rows = pd.read_csv(whole[2] / "dictionary.csv")
    assert not rows.isna().to_numpy().any()
    for name in ("results.csv", "estimates.csv"):
        columns = list(pd.read_csv(whole[2] / name, nrows=1))
        assert list(rows[rows.file.str.contains(name)].column) == columns
    schema = pq.read_schema(whole[2] / "results.parquet")
    assert all(field.metadata[b"meaning"] for field in schema)
