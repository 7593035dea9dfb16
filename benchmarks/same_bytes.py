"""Does a change of the code leave every number as it was? Compares the tiny study of two revisions byte for byte.

    python benchmarks/same_bytes.py REVISION [--keep FOLDER] [section.field=value ...]       2 minutes a side on 2 cores

Runs tests/tiny.yaml with two methods, three initialisations and two values of p (or with the named overrides) twice:
on one side with the code of REVISION, in a git worktree, on the other with this working tree, each into a new store.
Compares the numbers of results.csv by their keys, every record without `run` and `attempt`, and the size and sha256 of
every file that a record lists (Parquet tables and weights). FOLDER keeps the revision's store, which the next
comparison then uses. Prints one line for each thing that differs or that one side lacks, then the number of things
compared. The exit code is 0 if all are equal and 1 if something differs.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
OVERRIDES = [
    "sweep.method=[gradcam, irnet]",
    "sweep.init=[random, moco, chexpert]",
    "sweep.p=[0.5, 1.0]",
    "sweep.trials=1",
]


def run_study(code: Path, config: Path, store: Path, overrides: list[str]) -> None:
    """Run the study with the code of one folder.

    Args:
        code: the repository's folder.
        config: the study's config file.
        store: the store to build in.
        overrides: section.field=value, each.

    Raises:
        SystemExit: the study did not end with 0.
    """
    command = [sys.executable, str(code / "jobs" / "sweep.py"), str(config), f"store.root={store}", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{code}: the study ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def numbers(results: str) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Return iou, low, high and n of every row of results.csv by its keys; keys that once were blank are words now."""
    rows = list(csv.DictReader(io.StringIO(results)))
    keys = [*list(rows[0])[: list(rows[0]).index("iou")], "interval"]
    words = {"method": "expert", "num_expert": "all"}
    return {
        tuple(row[key] or words.get(key, "") for key in keys): tuple(row[name] for name in ("iou", "low", "high", "n"))
        for row in rows
    }


def contents(store: Path) -> dict[str, Any]:
    """Return what must be equal on both sides, by names that do not depend on the attempt."""
    found: dict[str, Any] = {}
    for file in sorted(store.glob("report/*/results.csv")):
        found[f"report/{file.name}"] = numbers(file.read_text(encoding="utf-8"))
    for path in sorted(store.glob("*/*/record.json")):
        record = json.loads(path.read_text())
        address = f"{path.parent.parent.name}/{path.parent.name}"
        for entry in record["files"]:
            data = (path.parent / record["attempt"] / entry["path"]).read_bytes()
            found[f"{address}/{entry['path']}"] = (len(data), hashlib.sha256(data).hexdigest())
        del record["run"], record["attempt"]
        found[f"{address}/record.json"] = json.dumps(record, sort_keys=True)
    return found


def main() -> int:
    """Run both sides and print what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("revision", metavar="REVISION", help="a commit, tag or branch of git")
    keep = "keep the revision's store here, and use it if it is there"
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help=keep)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    asked = parser.parse_args()
    overrides = asked.overrides or OVERRIDES
    command = ["git", "rev-parse", "--verify", f"{asked.revision}^{{commit}}"]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if found.returncode:
        sys.exit(f"{asked.revision}: git knows no such revision")
    commit = found.stdout.strip()
    name = f"{commit[:12]}-{hashlib.sha256(' '.join(overrides).encode()).hexdigest()[:8]}"
    with tempfile.TemporaryDirectory(prefix="same_bytes_") as folder:
        before = (asked.keep or Path(folder)).resolve() / name
        if not (before / "done").is_file():
            tree = Path(folder) / "tree"
            add = ["git", "worktree", "add", "--quiet", "--detach", str(tree), commit]
            subprocess.run(add, cwd=REPOSITORY, check=True)
            try:
                run_study(tree, tree / "tests" / "tiny.yaml", before, overrides)
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=REPOSITORY, check=True)
            (before / "done").touch()
        after = Path(folder) / "after"
        run_study(REPOSITORY, REPOSITORY / "tests" / "tiny.yaml", after, overrides)
        old, new = contents(before), contents(after)
    differing = [f"only in {asked.revision}: {key}" for key in sorted(old.keys() - new.keys())]
    differing += [f"only here: {key}" for key in sorted(new.keys() - old.keys())]
    differing += [f"differs: {key}" for key in sorted(old.keys() & new.keys()) if old[key] != new[key]]
    for line in differing:
        print(line)
    records = sum(key.endswith("record.json") for key in new)
    print(f"{len(new)} things compared, {records} records among them: {len(differing) or 'none'} differ")
    return 1 if differing or not records else 0


if __name__ == "__main__":
    sys.exit(main())
