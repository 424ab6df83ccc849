"""A plain table of text, drawn by both renderers."""

import dataclasses
from typing import NamedTuple


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
