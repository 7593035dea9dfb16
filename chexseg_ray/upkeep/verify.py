"""Compare every file of a store with its record."""

from functools import partial

from chexseg_ray.errors import InputError
from chexseg_ray.progress import say, track
from chexseg_ray.store.step import Record
from chexseg_ray.store.store import Store
from chexseg_ray.upkeep.contents import addresses


def verify(store: Store) -> int:
    """Read every file that a record of a store lists, and print what is damaged.

    Args:
        store: any store.

    Returns:
        Exit code 0.

    Raises:
        InputError: something is damaged; the lines before name it.
        TransientError: the storage refuses or does not answer.
    """
    places = list(addresses(store))
    progress = track("records compared", len(places))
    damaged, records, files, size, unfinished = list[str](), 0, 0, 0, 0
    present = set[str]()
    needed = dict[str, str]()
    for number, address in enumerate(places, start=1):
        record = store.find_address(address)
        if record is None:
            if store.exists(f"{address}/record.json"):
                damaged.append(f"{store.shown(address)}/record.json: is no record: delete this folder and run again")
            else:
                unfinished += 1
            continue
        records += 1
        present.add(record.fingerprint)
        needed |= dict.fromkeys(record.inputs.values(), address)
        for fault in store.side_by_side(partial(_fault, store, record), record.entries):
            damaged += fault
        files += len(record.files)
        size += sum(entry.size for entry in record.files)
        progress(number, address)
    for line in damaged:
        say(f"damaged: {line}")
    say(f"{records} records and {files} files ({size / 1e6:.1f} MB) compared; {unfinished} steps are not finished")
    absent = {address for fingerprint, address in needed.items() if fingerprint not in present}
    if absent:
        say(f"note: {len(absent)} records were made from steps that are not here; they can be used all the same")
    if damaged:
        raise InputError(f"{store.root}: {len(damaged)} files are damaged: delete the folders that the lines name")
    return 0


def _fault(store: Store, record: Record, path: str) -> list[str]:
    """What is wrong with a file, as a list of at most one line."""
    try:
        store.read(record, path)
    except InputError as error:
        return [str(error)]
    return []
