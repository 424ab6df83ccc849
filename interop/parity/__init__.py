"""Whether two implementations of a model compute the same thing, and if not, where they part."""

from .alignment.inputs import Inputs
from .checkpoint import check_checkpoint
from .comparison import compare
from .rendered_report import Report

__all__ = ["Inputs", "Report", "check_checkpoint", "compare"]
