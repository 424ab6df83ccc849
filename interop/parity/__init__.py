"""Whether two implementations of a model compute the same thing, and if not, where they part."""

from .checkpoint import check_checkpoint
from .judge import compare
from .report import Report

__all__ = ["Report", "check_checkpoint", "compare"]
