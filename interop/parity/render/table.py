"""A plain table of text, drawn by both renderers."""

import dataclasses
from typing import NamedTuple, Self


class Row(NamedTuple):
    """The cells of a row, and whether the row passes."""

    cells: tuple[str, ...]
    ok: bool = True


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns and rows; the first `num_text_columns` hold words, the others numbers."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    num_text_columns: int = 1
    num_omitted: int = 0  # failing rows that are left out for brevity

    def without(self, column: str) -> Self:
        """Returns the table without a column of numbers."""
        at = self.columns.index(column)
        rows = (row._replace(cells=row.cells[:at] + row.cells[at + 1 :]) for row in self.rows)
        columns = self.columns[:at] + self.columns[at + 1 :]
        return dataclasses.replace(self, columns=columns, rows=tuple(rows))
