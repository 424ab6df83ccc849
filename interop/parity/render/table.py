"""A table of text that any renderer can draw."""

import dataclasses
from typing import NamedTuple


class Row(NamedTuple):
    """The cells of a row, and whether what it is about is within its threshold."""

    cells: tuple[str, ...]
    ok: bool = True


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns and rows; the first `num_text_columns` hold words, the others numbers."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    num_text_columns: int = 1
    num_omitted: int = 0  # rows beyond their thresholds that are left out for brevity
