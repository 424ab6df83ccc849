"""Training data: text, text pairs, arrays of vectors and synthetic tasks, as seeded batches."""

from .documents import DataConfig

__all__ = ["DataConfig"]
