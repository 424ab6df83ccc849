"""PyTorch reference of the LLM system, `LLM(ModelArgs)`, and of Meta's Llama 3 and 4."""

from .model import LLM, ModelArgs, TransformerInput

__all__ = ["LLM", "ModelArgs", "TransformerInput"]
