"""Tiny random models of every Hugging Face family, and what must hold of each."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

# N != K, H != D / N, and sizes that differ from each other: a mix-up of axes changes a shape.
SIZES = {
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 56,
    "max_position_embeddings": 512,
}
LENGTH = 320


@dataclasses.dataclass(frozen=True)
class Case:
    """A config of transformers: its class's prefix, and its arguments on top of `SIZES`."""

    prefix: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_class: str = ""  # the default is that of the prefix, for causal language models

    def build(self) -> torch.nn.Module:
        """The model with distinct random numbers in every tensor; no norm scale is one."""
        config = getattr(transformers, f"{self.prefix}Config")(
            **{**SIZES, **self.changes, "attn_implementation": "eager"}
        )
        model = getattr(transformers, self.model_class or f"{self.prefix}ForCausalLM")(config)
        return randomize(model).eval()


# By the name of the family, which the part before a slash must be.
CASES: dict[str, Case] = {
    "llama": Case("Llama"),
    "llama/tied-biases": Case(
        "Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
    ),
    "qwen3": Case("Qwen3"),
    "qwen3/tied-biases": Case("Qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
}


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draws every parameter: scales of norms around one, the others around zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.3 * drawn if is_scale else 0.15 * drawn)
    return model


def tokens_of(model: torch.nn.Module, batch_size: int = 2, seed: int = 1) -> np.ndarray:
    """Random tokens, BT, long enough for windows, chunks and wrong frequencies to show."""
    size = model.config.get_text_config().vocab_size
    return np.random.default_rng(seed).integers(0, size, (batch_size, LENGTH))


def stored(folder: Path) -> dict[str, tuple]:
    """Dtype, shape and bits of every tensor in a folder."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }
