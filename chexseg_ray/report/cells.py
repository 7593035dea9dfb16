"""Tables whose cells link to the records of their number; as CSV, as Markdown and, in page.html.j2, as HTML."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass

from chexseg_ray.config.axes import SweepPoint
from chexseg_ray.progress import csv_cell
from chexseg_ray.report.text import markdown

Links = Mapping[SweepPoint, str]  # the anchor of each setting's records


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Args:
        text: the cell's text.
        small: smaller text below it, such as an interval.
        link: the page's anchor of the records that the number comes from.
        paper: the paper's number for the same setting.
        value: the number in full, which the CSV has instead of the text.
    """

    text: str
    small: str = ""
    link: str = ""
    paper: str = ""
    value: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        name: the name of its file, without ending.
        title: its heading.
        text: one or two sentences about what it shows.
        header: the names of its columns.
        labels: number of leading columns that are text.
        rows: the rows, one cell per column.
    """

    name: str
    title: str
    text: str
    header: tuple[str, ...]
    labels: int
    rows: tuple[tuple[Cell, ...], ...]

    def csv(self) -> bytes:
        """Return the table as CSV in UTF-8.

        If cells have a smaller text or a number of the paper, these are further columns on the right. A spreadsheet
        reads no cell as a formula.
        """
        numbers = [cell for row in self.rows for cell in row[self.labels :]]
        names = list(self.header)
        extra = [attribute for attribute in ("small", "paper") if any(getattr(cell, attribute) for cell in numbers)]
        for attribute in extra:
            suffix = "interval" if attribute == "small" else attribute
            names += [f"{name} {suffix}" for name in self.header[self.labels :]]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(map(csv_cell, names))
        for row in self.rows:
            more = [getattr(cell, attribute) for attribute in extra for cell in row[self.labels :]]
            writer.writerow(map(csv_cell, [*(cell.value or cell.text for cell in row), *more]))
        return stream.getvalue().encode()

    def markdown(self) -> str:
        """Return the table as Markdown, with the smaller text and the paper's number in brackets."""
        return markdown([[_cell_text(cell) for cell in row] for row in self.rows], self.header)


def _cell_text(cell: Cell) -> str:
    details = [cell.small] if cell.small else []
    if cell.paper:
        details.append(f"paper {cell.paper}")
    return f"{cell.text} ({'; '.join(details)})" if details else cell.text
