"""Does a change of the code leave every number where it was? The tiny study by this code and by an earlier revision, compared byte for byte.

    python benchmarks/same_bytes.py REVISION [--keep FOLDER] [section.field=value ...]        2 minutes a side on 2 cores

Runs tests/tiny.yaml with both methods, three initialisations and two values of p (or with the overrides named) from a git worktree of REVISION and
from this tree, each into a store of its own, and compares results.csv, every record without `run` and `attempt` (a record lists the sha256 of
each Parquet file and of the weights), and the sizes and hashes of the files themselves. FOLDER keeps the revision's store for the next comparison.
Exit code: 0 all is equal, 1 something differs.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
OVERRIDES = ["sweep.method=[gradcam, irnet]", "sweep.init=[random, moco, chexpert]", "sweep.p=[0.5, 1.0]", "sweep.trials=1"]


def run_study(code: Path, config: Path, store: Path, overrides: list[str]) -> None:
    """Run the study by the code of one folder.

    Raises:
        SystemExit: it did not end with 0.
    """
    command = [sys.executable, str(code / "jobs" / "sweep.py"), str(config), f"store.root={store}", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{code}: the study ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def contents(store: Path) -> dict[str, Any]:
    """What must be equal, by a name that does not depend on the attempt."""
    found: dict[str, Any] = {f"report/{file.name}": file.read_bytes() for file in sorted(store.glob("report/*/results.csv"))}
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
    """Run both and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("revision", metavar="REVISION", help="a commit, tag or branch of git")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the revision's store here, and use it if it is there")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    asked = parser.parse_args()
    overrides = asked.overrides or OVERRIDES
    commit = subprocess.run(["git", "rev-parse", "--verify", f"{asked.revision}^{{commit}}"], cwd=REPOSITORY, capture_output=True, text=True)
    if commit.returncode:
        sys.exit(f"{asked.revision}: git knows no such revision")
    name = f"{commit.stdout.strip()[:12]}-{hashlib.sha256(' '.join(overrides).encode()).hexdigest()[:8]}"
    with tempfile.TemporaryDirectory(prefix="same_bytes_") as folder:
        before = (asked.keep or Path(folder)).resolve() / name
        if not (before / "done").is_file():
            tree = Path(folder) / "tree"
            subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit.stdout.strip()], cwd=REPOSITORY, check=True)
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
