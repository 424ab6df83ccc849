"""The LLM system (`LLM(ModelArgs)`), and Meta's Llama 3 and 4."""

from .model import LLM, ModelArgs, TransformerInput

__all__ = ["LLM", "ModelArgs", "TransformerInput"]
