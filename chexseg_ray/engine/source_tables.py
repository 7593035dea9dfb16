"""The CSV and mask files of a data root, each parsed once in a run, whichever steps and checks read it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pandas as pd

from chexseg_ray.data.chexpert import read_csv
from chexseg_ray.data.masks import Rle, read_mask_json
from chexseg_ray.errors import InputError
from chexseg_ray.store.filesystem import Source

T = TypeVar("T")
Columns = Mapping[str, Sequence[str]]
Masks = dict[str, dict[str, Rle]]


class SourceTables:
    """The tables that were parsed so far, by file. They belong to the driver; a pickled copy is empty."""

    def __init__(self) -> None:
        self._parsed: dict[tuple[Any, ...], Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (SourceTables, ())

    def clear(self) -> None:
        """Forget all tables; 1,000,000 X-rays take 0.6 GB."""
        self._parsed.clear()

    def csv(self, source: Source, name: str, pathologies: Sequence[str], columns: Columns) -> pd.DataFrame:
        """The rows of a CSV; not to be changed.

        Args:
            source: the data root.
            name: the file's path below it.
            pathologies: K names, each a column.
            columns: {the name here: the names that the file may use for it, preferred first}.

        Raises:
            InputError: the file is not there, or has a fault (data.chexpert.read_csv).
        """
        return self._once(read_csv, source, name, pathologies, columns)

    def masks(self, source: Source, name: str, pathologies: Sequence[str], columns: Columns) -> Masks:
        """The masks {cxr_id: {pathology: Rle}} of a file; not to be changed.

        Args:
            source: the data root.
            name: the file's path below it.
            pathologies: K names.
            columns: {the name here: the names that the file may use for it, preferred first}.

        Raises:
            InputError: the file is not there, or has a fault (data.masks.read_mask_json).
        """
        return self._once(read_mask_json, source, name, pathologies, columns)

    def _once(
        self, parse: Callable[..., T], source: Source, name: str, pathologies: Sequence[str], columns: Columns
    ) -> T:
        """What `parse` makes of a file, parsed at the first call with these arguments."""
        names = tuple((wanted, tuple(found)) for wanted, found in sorted(columns.items()))
        key = (parse.__name__, source.filesystem.type_name, source.base, name, tuple(pathologies), names)
        if key not in self._parsed:
            self._parsed[key] = parse(read_source(source, name), name, pathologies, columns)
        table: T = self._parsed[key]
        return table


def read_source(source: Source, name: str) -> bytes:
    """The bytes of a file below the data root.

    Args:
        source: the data root.
        name: the file's path below it.

    Raises:
        InputError: there is no such file.
    """
    try:
        return source.read(name)
    except FileNotFoundError:
        remedy = "check data.root and the file names in the data section"
        raise InputError(f"{source.base}/{name}: is not a file: {remedy}") from None
