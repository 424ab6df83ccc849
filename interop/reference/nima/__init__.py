"""PyTorch reference of nima: a GPT-style decoder and an encoder-decoder."""

from .models import PRESETS, GPTModel, TransformerModel

__all__ = ["PRESETS", "GPTModel", "TransformerModel"]
