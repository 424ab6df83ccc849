"""Whether two implementations of a model compute the same thing, and if not, where they part."""

from .checkpoint import check_checkpoint
from .inputs import Inputs
from .judge import compare
from .report import Report

__all__ = ["Inputs", "Report", "check_checkpoint", "compare"]
