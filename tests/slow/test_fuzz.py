"""Damaged files of every kind are refused by one line, or read; nothing else, and nothing changed is read as good."""

import os
from pathlib import Path

import pytest
from slow.fuzz import Found, fuzz, keep
from slow.readers import READERS

SEED = int(os.environ.get("CHEXSEG_SEED", "0"))
SECONDS = float(os.environ.get("CHEXSEG_FUZZ_SECONDS", "300"))
KEPT = Path(os.environ.get("CHEXSEG_FUZZ_KEPT", "/tmp/chexseg_fuzz"))


def faults(found: Found, seed: int) -> str:
    return "\n".join(keep(found, seed, KEPT))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 3 + 600)
def test_damaged_files_of_every_kind_are_refused_or_read(capfd: pytest.CaptureFixture[str]) -> None:
    all_found = [fuzz(name, SEED, SECONDS / len(READERS)) for name in READERS]
    with capfd.disabled():
        print(f"\nfuzzing, seed {SEED} ({os.cpu_count()} CPUs)", *(found.line() for found in all_found), sep="\n")
        print(f"{'all':<11} {sum(f.files for f in all_found):>7} files in {sum(f.seconds for f in all_found):5.1f} s")
    assert [fault for found in all_found for fault in keep(found, SEED, KEPT)] == []
