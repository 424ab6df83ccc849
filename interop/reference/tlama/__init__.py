"""The tlama-core system."""

from .model import TlamaConfig, Transformer

__all__ = ["TlamaConfig", "Transformer"]
