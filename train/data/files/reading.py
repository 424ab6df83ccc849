"""The table of data formats by the ends of file names, and the rows of all files of a source."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from jaxllm.errors import UserError
from jaxllm.untrusted.regular_files import check_is_regular

from .finding import local_files
from .named import is_dataset, named_rows
from .row import Read, Row
from .table_rows import array_record, arrow, parquet
from .text_rows import json_lines, json_list, text_file

FORMATS: dict[str, Read] = {
    ".txt": text_file,
    ".jsonl": json_lines,
    ".jsonl.gz": json_lines,
    ".jsonl.zst": json_lines,
    ".json": json_list,
    ".parquet": parquet,
    ".arrow": arrow,
    ".array_record": array_record,
    ".arrayrecord": array_record,
}


def read_rows(patterns: Iterable[str], columns: tuple[str, ...]) -> Iterator[Row]:
    """Yields the rows of files, in order.

    Args:
        patterns: files, folders, glob patterns, or names of datasets, whose rows come first.
        columns: the columns to read where a file is a table; the others are left out.

    Raises:
        MissingFileError: a pattern matches no file.
        UserError: a file has no row, none of the columns, or another format than its name says.
    """
    given = tuple(patterns)
    for address in filter(is_dataset, given):
        yield from named_rows(address, columns)
    files = [pattern for pattern in given if not is_dataset(pattern)]
    for file in local_files(files):
        read = find_format(file)
        check_is_regular(file)
        row = None
        for row in read(file, columns):
            yield row
        if row is None:
            raise UserError(f"{file}: this file is empty; remove it, or leave it out")


def find_format(file: Path) -> Read:
    """Returns the reader of a file, by the end of its name. Raises UserError if there is none."""
    for end, read in FORMATS.items():
        if file.name.lower().endswith(end):
            return read
    raise UserError(f"{file}: data are read from {', '.join(FORMATS)} files, not {file.suffix!r}")
