"""Parity: compares two implementations of a model and finds the first divergent activation."""

from .against import compare_checkpoints
from .alignment.function_model import JaxFunction
from .alignment.inputs import Inputs
from .alignment.user_taps import tap
from .checkpoint import check_checkpoint
from .comparison import compare
from .execution.recipe import Recipe
from .rendered_report import Report

__all__ = [
    "Inputs",
    "JaxFunction",
    "Recipe",
    "Report",
    "check_checkpoint",
    "compare",
    "compare_checkpoints",
    "tap",
]
