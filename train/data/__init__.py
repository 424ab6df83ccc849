"""What models train on: text, pairs, arrays and tasks, as batches by seed and step."""

from .documents import DataConfig

__all__ = ["DataConfig"]
