"""Rows of tables: Parquet and Arrow files, of which some columns are read; and ArrayRecord."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxllm.errors import MissingPackageError, UserError, did_you_mean

from .row import Row, same, unreadable

ROWS = 1024  # read at a time


def parquet(file: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """Yields the rows of a Parquet file, as objects with the columns of these names."""
    with _reading(file, "a Parquet file"):
        import pyarrow.parquet

        table = pyarrow.parquet.ParquetFile(file)
        chosen = _chosen(file, table.schema_arrow.names, columns)
        batches = table.iter_batches(ROWS, columns=chosen)
    yield from _rows(file, "a Parquet file", batches, table.metadata.num_rows)


def arrow(file: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """Yields the rows of an Arrow file, as the package `datasets` writes them."""
    kind = "a file of an Arrow stream"
    with _reading(file, kind):
        import pyarrow

        table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(file)))
        chosen = _chosen(file, table.schema.names, columns)
    yield from _rows(file, kind, (batch.select(chosen) for batch in table))


def array_record(file: Path, _: tuple[str, ...]) -> Iterator[Row]:
    """Yields the records of an ArrayRecord file; each is a JSON object."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(file))
    if not reader.ok():
        raise unreadable(file, "an ArrayRecord file", ValueError("it has no such header"))
    try:
        for first in range(0, reader.num_records(), ROWS):
            records = reader.read(first, min(first + ROWS, reader.num_records()))
            for number, record in enumerate(records, start=first + 1):
                share = number / reader.num_records()
                yield Row(file, "record", number, record, json.loads, share)
    finally:
        reader.close()


def _rows(file: Path, kind: str, batches: Iterator[Any], total: int | None = None) -> Iterator[Row]:
    """Yields the rows of batches; `total` is their number, if it is known."""
    number = 0
    while True:
        with _reading(file, kind):
            batch = next(batches, None)
        if batch is None:
            return
        for start in range(0, batch.num_rows, ROWS):
            for value in batch.slice(start, ROWS).to_pylist():
                number += 1
                share = number / total if total else 0.0
                yield Row(file, "row", number, value, same, share)


def _chosen(file: Path, names: list[str], columns: tuple[str, ...]) -> list[str]:
    """Returns the columns to read. Raises UserError if the file has none of them."""
    if chosen := [name for name in names if name in columns]:
        return chosen
    wanted = " or ".join(map(repr, columns))
    raise UserError(
        f"{file}: no column is named {wanted}; its columns are {', '.join(names)}"
        f"{did_you_mean(columns[0], names)}"
    )


@contextmanager
def _reading(file: Path, kind: str) -> Iterator[None]:
    """Context of a call of pyarrow, whose errors name no file."""
    try:
        yield
    except ImportError:
        raise MissingPackageError(
            f"{file} needs pyarrow, which is not installed: pip install 'jaxllm[data]'"
        ) from None
    except (UserError, MemoryError):
        raise
    except Exception as error:  # pyarrow's are of many classes
        raise unreadable(file, kind, error) from None


def value_of(record: object, key: str) -> Any:
    """Returns what a record has under a key. Raises UserError if it is no object, or lacks it."""
    if not isinstance(record, Mapping):
        raise UserError(f"expected a JSON object with {key!r}")
    if key not in record:
        raise UserError(f"no {key!r} among its keys {', '.join(map(str, record))}")
    return record[key]
