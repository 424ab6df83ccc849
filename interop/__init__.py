"""Checkpoints of PyTorch models, in and out. Reading and writing them needs no PyTorch."""

from .conversion import Conversion, convert
from .inspection import Inspection, inspect
from .load import load_pretrained
from .planning import Plan, plan
from .rules import Rule
from .save import save_pretrained
from .suggestion import Suggestions, suggest
from .tensors import CheckpointError
from .training_export import OptimizerExport
from .training_state import load_training_state
from .verification import Verification, verify

__all__ = [
    "CheckpointError",
    "Conversion",
    "Inspection",
    "OptimizerExport",
    "Plan",
    "Rule",
    "Suggestions",
    "Verification",
    "convert",
    "inspect",
    "load_pretrained",
    "load_training_state",
    "plan",
    "save_pretrained",
    "suggest",
    "verify",
]
