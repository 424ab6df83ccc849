"""A row of a data file: where it is, and how it is read."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxllm.errors import UserError, first_line

SHOWN = 80  # characters or bytes of a row that messages show


class Row(NamedTuple):
    """A line, a record or a whole file, which is parsed when it is asked for."""

    file: Path
    unit: str  # "line", "row", "record"; "" for a whole file
    number: int  # counted from 1
    raw: Any
    parse: Callable[[Any], Any]
    share: float = 1.0  # of the file that is read with this row, where it is known

    @property
    def place(self) -> str:
        """Where the row is, for messages."""
        return f"{self.file}, {self.unit} {self.number:,}" if self.unit else str(self.file)

    def explain(self, error: BaseException) -> UserError:
        """Returns the error of one line for what is wrong with this row."""
        found = f"; found {self.raw[:SHOWN]!r}" if isinstance(self.raw, bytes | str) else ""
        return UserError(f"{self.place}: {first_line(error)}{found}")


Read = Callable[[Path, tuple[str, ...]], Iterator[Row]]  # takes a file and the columns of interest


def unreadable(file: Path, kind: str, error: BaseException) -> UserError:
    """Returns the error for a file that is not of the kind that its name says."""
    return UserError(f"{file}: this is not {kind}, or it is damaged: {first_line(error)}")


def same(value: Any) -> Any:
    """Parses what needs no parsing."""
    return value
