"""Files of records: their rows, read one after the other in the memory of a few."""

from .bad_rows import BadRows, Policy
from .finding import find_files
from .reading import read_rows
from .row import Row

__all__ = ["BadRows", "Policy", "Row", "find_files", "read_rows"]
