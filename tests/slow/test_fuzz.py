"""Damaged files of every kind are refused by one line, or read; nothing else, and nothing changed is read as good."""

import os
from pathlib import Path

import pytest
from slow.corpus import CORPUS, MAY_BE_READ
from slow.fuzz import GOOD, damaged_file, fuzz, keep, outcome_of
from slow.readers import FEW, READERS

SEED = int(os.environ.get("CHEXSEG_SEED", "0"))
SECONDS = float(os.environ.get("CHEXSEG_FUZZ_SECONDS", "300"))
KEPT = Path(os.environ.get("CHEXSEG_FUZZ_KEPT", "/tmp/chexseg_fuzz"))


@pytest.mark.parametrize("name", FEW)
def test_some_damaged_files_are_refused_or_read(name: str, tmp_path: Path) -> None:
    """The short form, in this process: a fixed seed and number of files."""
    reader = READERS[name](tmp_path)
    outcomes = [outcome_of(reader, data) for data in reader.seeds]
    assert outcomes[: reader.valid] == ["accepted"] * reader.valid
    for number in range(len(reader.seeds), FEW[name]):
        data = damaged_file(reader, name, 0, number)
        outcome = outcome_of(reader, data)
        assert outcome in GOOD, f"{number}: {outcome}: {data[:300]!r}"


@pytest.mark.parametrize("name", CORPUS)
def test_what_once_escaped_is_refused(name: str, tmp_path: Path) -> None:
    reader = READERS[name](tmp_path)
    allowed = GOOD if isinstance(reader, MAY_BE_READ) else ("refused", "none")
    for data in CORPUS[name](reader):
        outcome = outcome_of(reader, data)
        assert outcome in allowed, f"{outcome}: {data[:300]!r}"


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 3 + 600)
def test_damaged_files_of_every_kind_are_refused_or_read(capfd: pytest.CaptureFixture[str]) -> None:
    all_found = [fuzz(name, SEED, SECONDS / len(READERS)) for name in READERS]
    with capfd.disabled():
        print(f"\nfuzzing, seed {SEED} ({os.cpu_count()} CPUs)", *(found.line() for found in all_found), sep="\n")
        print(f"{'all':<11} {sum(f.files for f in all_found):>7} files in {sum(f.seconds for f in all_found):5.1f} s")
    assert [fault for found in all_found for fault in keep(found, SEED, KEPT)] == []
