"""Explains a number: prints the chain of records that it was made from, each with what shaped it."""

import csv
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chexseg_ray.errors import InputError, quoted, shortened
from chexseg_ray.store.filesystem import refuse_credentials
from chexseg_ray.store.store import Store
from chexseg_ray.study.steps import KINDS

_ADDRESS = re.compile(r"(?:^|[/,\s])([a-z_]+/[0-9a-f]{12})(?=$|[/,\s])")
_LINE = re.compile(r"(.*\.csv):(\d+)$")
_URI = re.compile(r"[A-Za-z][\w+.-]*://[^\s,]*")
_COLUMNS = {"trial", "pathology", "aggregation", "iou", "record"}
_MAX_LENGTH = 240  # printed characters of a value


@dataclass(frozen=True)
class Asked:
    """What to explain: addresses of records in a store, and a sentence with the number if a result row was named."""

    store: Store
    addresses: list[str]
    title: str = ""


def find_records(what: str, root: str | None) -> Asked:
    """Find the records that a command line names.

    Args:
        what: a record's folder or address, `results.csv:LINE`, or the text of such a line.
        root: the store's folder or URI; None if `what` names it.

    Raises:
        InputError: `what` names no record, or the store is unknown.
    """
    for uri in _URI.findall(what):
        refuse_credentials(uri, "ADDRESS")
    line = _LINE.match(what)
    if line:
        path = Path(line[1]).expanduser()
        addresses, title = _records_of_row(path, int(line[2]))
        above = str(path.resolve().parent.parent.parent)  # STORE/report/NAME/results.csv
        return Asked(Store.open(root or above, "--store"), addresses, title)
    found = _ADDRESS.findall(what)
    if not found:
        forms = "a record's folder, an address such as evaluation/0123456789ab, or results.csv:LINE"
        raise InputError(f"{shortened(what, 300)}: names no record: give {forms}")
    folder = what.partition(found[-1])[0].rstrip("/")
    if root is None and (not folder or "," in what):
        raise InputError(
            f"{shortened(found[-1])}: its store is unknown: name the store's folder or URI as --store ROOT"
        )
    return Asked(Store.open(root or folder, "--store"), [found[-1]])


def _records_of_row(path: Path, line: int) -> tuple[list[str], str]:
    """Return the addresses behind a row of results.csv, and the row as a sentence.

    A trial's row has one record. A row over trials has those of all trials of its setting.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}): name a report's results.csv") from None
    if not rows or not set(rows[0]) >= _COLUMNS:
        raise InputError(f"{path}: is not a report's results.csv: name one")
    if not 2 <= line <= len(rows) + 1:
        raise InputError(f"{path}: has no row of results in line {line}: lines 2 to {len(rows) + 1} are rows")
    row = rows[line - 2]
    axes = list(row)[: list(row).index("trial")]
    setting = ", ".join(f"{name} {row[name]}" for name in (*axes, "trial") if row[name])
    title = f"{row['aggregation']} IoU of {row['pathology']}: {row['iou'] or 'undefined'} ({setting})"
    if row["record"]:
        return [_address(row["record"], path, line)], title
    trials = [
        _address(other["record"], path, number)
        for number, other in enumerate(rows, start=2)
        if other["record"] and all(other[name] == row[name] for name in axes)
    ]
    if not trials:
        raise InputError(f"{path} line {line}: no trial of this setting is built: run the study first")
    return list(dict.fromkeys(trials)), title


def _address(cell: str, path: Path, line: int) -> str:
    """Return a cell of the column `record` if it is an address; raise InputError if it is none."""
    if not _ADDRESS.fullmatch(cell):
        raise InputError(f"{path} line {line}: its record {quoted(cell)} is no address: write the report again")
    return cell


def explanation(asked: Asked) -> Iterator[str]:
    """Yield printed lines: each record with what shaped it, and below it the records that it was made from.

    A record that was printed before is only named.

    Args:
        asked: the records to begin with.

    Raises:
        InputError: one of them is not in the store.
    """
    store = asked.store
    if asked.title:
        yield asked.title
    addresses = {fingerprint: f"{kind}/{fingerprint}" for kind in KINDS for fingerprint in store.names(kind)}
    shown: set[str] = set()
    for address in asked.addresses:
        if store.find_address(address) is None:
            raise InputError(
                f"{shortened(address)}: is not a record of the store {store.root}: name its store as --store ROOT"
            )
        yield from _chain(store, address, addresses, shown)


def _chain(
    store: Store, address: str, addresses: Mapping[str, str], shown: set[str], role: str = "", depth: int = 0
) -> Iterator[str]:
    """Yield the lines of a record and of all records that it was made from.

    Args:
        store: the store of the records.
        address: the record's address.
        addresses: the address of each fingerprint in the store.
        shown: the addresses that were printed; the record's is added.
        role: the record's role as an input of the record above it.
        depth: number of records above it.
    """
    indent = "  " * depth
    title = f"{indent}{role}: {address}" if role else f"{indent}{address}"
    record = store.find_address(address)
    if record is None:
        yield f"{title}  (its record is not in the store)"
        return
    if address in shown:
        yield f"{title}  (see above)"
        return
    shown.add(address)
    yield f"{title}  version {record.version}, {record.rows} rows, {_run(record.run)}"
    for heading, values in (("config", record.config), ("metrics", record.metrics)):
        text = "; ".join(f"{name} {_short(value)}" for name, value in values.items())
        if text:
            first, rest = f"{indent}    ", f"{indent}      "
            yield from textwrap.wrap(f"{heading}: {text}", 110, initial_indent=first, subsequent_indent=rest)
    size = sum(entry.size for entry in record.files)
    folder = store.shown(f"{record.address}/{record.attempt}")
    count = f"{len(record.files)} file{'' if len(record.files) == 1 else 's'}"
    yield f"{indent}    {count}, {size / 1e6:.1f} MB, in {folder}"
    for input_role, fingerprint in sorted(record.inputs.items()):
        input_address = addresses.get(fingerprint, f"?/{fingerprint}")
        yield from _chain(store, input_address, addresses, shown, input_role, depth + 1)


def _run(run: Mapping[str, Any]) -> str:
    """Return when, where and with which code a step was made."""
    templates = {
        "finished": "made {}",
        "host": "on {}",
        "seconds": "in {} s",
        "device": "device {}",
        "git_commit": "code {:.12}",
    }
    parts = [template.format(run[name]) for name, template in templates.items() if run.get(name)]
    if "torch" in run.get("versions", {}):
        parts.append(f"torch {run['versions']['torch']}")
    return ", ".join(parts)


def _short(value: Any) -> str:
    """Return a value as one line of text."""
    if isinstance(value, dict):
        text = ", ".join(f"{name} {_short(inner)}" for name, inner in value.items())
    elif isinstance(value, list):
        text = f"[{', '.join(map(_short, value))}]"
    elif isinstance(value, float):
        text = f"{value:g}"
    elif value is None or isinstance(value, bool):
        text = json.dumps(value)
    else:
        text = str(value)
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."
