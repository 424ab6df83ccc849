"""Checkpoints of PyTorch models, in and out. Reading and writing them needs no PyTorch."""

from .load import load_pretrained
from .save import save_pretrained
from .tensors import CheckpointError

__all__ = ["CheckpointError", "load_pretrained", "save_pretrained"]
