"""Tiny random Hugging Face decoders: case definitions, random weights, tokens, stored tensors."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

# N != K, H != D / N, and all sizes are different, so that mixed-up axes change a shape.
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
    """A transformers config: the prefix of its class, and its arguments in addition to `SIZES`."""

    prefix: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_class: str = ""  # by default the prefix and "ForCausalLM"
    written_as: str = ""  # the model_type on export, if it is a more general one
    without: tuple[str, ...] = ()  # names in `SIZES` that the config class does not have
    config_class: str = ""  # by default the prefix and "Config"
    in_float64: bool = False  # whether logits are compared with transformers' in float64

    def build(self) -> torch.nn.Module:
        """Builds the model with random numbers in every tensor; no norm scale is 1."""
        sizes = {name: size for name, size in SIZES.items() if name not in self.without}
        config = getattr(transformers, self.config_class or f"{self.prefix}Config")(
            **{**sizes, **self.changes, "attn_implementation": "eager"}
        )
        model = getattr(transformers, self.model_class or f"{self.prefix}ForCausalLM")(config)
        return randomize(model).eval()


# Attention chunks and temperature steps end within the prompt; dense and expert layers alternate.
LLAMA4 = {
    "intermediate_size": 40,
    "intermediate_size_mlp": 56,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "interleave_moe_layer_step": 2,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 100,
    "floor_scale": 64,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
    },
}


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    """Returns RoPE scaling parameters with a base that no family uses by default."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 20000.0, **parameters}}


# Latent attention and groups of experts, whose sizes are all different.
DEEPSEEK = {
    "num_key_value_heads": 6,
    **{"q_lora_rank": 20, "kv_lora_rank": 24, "v_head_dim": 10},
    **{"qk_nope_head_dim": 12, "qk_rope_head_dim": 8},
    **{"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40},
    **{"n_group": 4, "topk_group": 2},
}
DEEPSEEK_YARN = rope(
    "yarn", factor=8.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=0.7
)

# Gated DeltaNet, whose sizes are all different.
DELTA = {
    **{"linear_num_value_heads": 6, "linear_num_key_heads": 3},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 10, "linear_conv_kernel_dim": 4},
}


def longrope(original: int, pairs: int, **parameters: Any) -> dict[str, Any]:
    """Returns LongRoPE parameters with random factors, which differ for long sequences.

    Args:
        original: the length up to which the short factors apply.
        pairs: the number of rotated pairs, H / 2.
        **parameters: further RoPE parameters.
    """
    factors = 1 + np.random.default_rng(pairs).random((2, pairs)) * [[0.5], [30]]
    short, long = factors.tolist()
    return rope(
        "longrope",
        short_factor=short,
        long_factor=long,
        original_max_position_embeddings=original,
        **parameters,
    )


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fills every parameter with random numbers: norm scales around 1, all others around 0.

    Frozen parameters, which follow from the config, stay. Routers' corrections are buffers.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        trained += [(n, p) for n, p in model.named_buffers() if n.endswith("correction_bias")]
        for name, parameter in trained:
            drawn = torch.randn(parameter.shape, generator=generator)
            is_scale = re.search("norm|ln_", name.lower()) and name.endswith("weight")
            parameter.copy_(1 + 0.3 * drawn if is_scale else 0.15 * drawn)
    return model


def tokens_of(model: torch.nn.Module, batch_size: int = 2, seed: int = 1) -> np.ndarray:
    """Draws tokens (B, T), long enough to reveal wrong windows, chunks and RoPE frequencies."""
    size = model.config.get_text_config().vocab_size
    return np.random.default_rng(seed).integers(0, size, (batch_size, LENGTH))


def stored(folder: Path) -> dict[str, tuple]:
    """Returns the dtype, shape and bytes of every safetensors tensor in a folder."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }
