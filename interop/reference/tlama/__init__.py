"""PyTorch reference of tlama-core."""

from .model import TlamaConfig, Transformer

__all__ = ["TlamaConfig", "Transformer"]
