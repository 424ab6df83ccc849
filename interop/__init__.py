"""Checkpoints of PyTorch models, in and out. Reading and writing them needs no PyTorch."""

from .conversion.convert import Conversion, convert
from .conversion.export_step import export_step
from .formats.stored_tensor import CheckpointError
from .in_memory.from_torch import from_torch
from .in_memory.to_torch import to_torch
from .inspection.inspect import Inspection, inspect
from .inspection.suggest import Suggestions, suggest
from .inspection.verify import Verification, verify
from .loading.generation_config import GenerationConfig, read_generation_config
from .loading.load import load_pretrained
from .loading.plan import Plan, plan
from .optimizer_state.export_state import OptimizerExport
from .optimizer_state.load_state import load_training_state
from .pytrees.load_into import load_into
from .pytrees.save_from import save_from
from .rules.rule import Rule
from .saving.save import save_pretrained

__all__ = [
    "CheckpointError",
    "Conversion",
    "GenerationConfig",
    "Inspection",
    "OptimizerExport",
    "Plan",
    "Rule",
    "Suggestions",
    "Verification",
    "convert",
    "export_step",
    "from_torch",
    "inspect",
    "load_into",
    "load_pretrained",
    "load_training_state",
    "plan",
    "read_generation_config",
    "save_from",
    "save_pretrained",
    "suggest",
    "to_torch",
    "verify",
]
