"""Rows of datasets by name, such as `datasets://ORG/NAME:train`, by the package `datasets`."""

from collections.abc import Iterator
from pathlib import Path

from jaxllm.errors import MissingPackageError, UserError, did_you_mean, first_line

from .row import Row, same

PREFIX = "datasets://"


def is_dataset(pattern: str) -> bool:
    """Whether a pattern names a dataset, not files."""
    return pattern.startswith(PREFIX)


def named_rows(address: str, columns: tuple[str, ...]) -> Iterator[Row]:
    """Yields the rows of a dataset, which `datasets` downloads and keeps in its cache.

    Args:
        address: `datasets://NAME`, perhaps with `@CONFIG` and then `:SPLIT` (by default train). A
            name that begins with a slash is a folder.
        columns: the columns of interest; the others are left out.

    Raises:
        MissingPackageError: the package is not installed.
        UserError: there is no such dataset or split, it has none of the columns or no row.
    """
    try:
        import datasets
    except ImportError:
        raise MissingPackageError(
            f"{address} needs the package datasets, which is not installed: pip install datasets"
        ) from None
    rest, _, split = address.removeprefix(PREFIX).partition(":")
    name, _, config = rest.partition("@")
    try:
        found = datasets.load_dataset(name, config or None, split=split or "train")
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # those of datasets, of the hub and of requests
        raise UserError(f"{address}: this dataset cannot be loaded: {first_line(error)}") from None
    chosen = [column for column in found.column_names if column in columns]
    if not chosen:
        wanted = " or ".join(map(repr, columns))
        raise UserError(
            f"{address}: no column is named {wanted}; its columns are "
            f"{', '.join(found.column_names)}{did_you_mean(columns[0], found.column_names)}"
        )
    if not len(found):
        raise UserError(f"{address}: this dataset is empty; leave it out")
    for number, value in enumerate(found.select_columns(chosen), start=1):
        yield Row(Path(address), "row", number, value, same, number / len(found))
