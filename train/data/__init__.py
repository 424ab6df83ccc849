"""Training data: text, text pairs, arrays of vectors and synthetic tasks, as seeded batches."""

from .documents import DataConfig, load_corpus

__all__ = ["DataConfig", "load_corpus"]
