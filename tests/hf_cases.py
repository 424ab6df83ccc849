"""Tiny random models of every Hugging Face family, and what must hold of each."""

import dataclasses
import re
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
    written_as: str = ""  # the model_type, where a more general one says as much
    without: tuple[str, ...] = ()  # those of `SIZES` that the config class does not have

    def build(self) -> torch.nn.Module:
        """The model with distinct random numbers in every tensor; no norm scale is one."""
        sizes = {name: size for name, size in SIZES.items() if name not in self.without}
        config = getattr(transformers, f"{self.prefix}Config")(
            **{**sizes, **self.changes, "attn_implementation": "eager"}
        )
        model = getattr(transformers, self.model_class or f"{self.prefix}ForCausalLM")(config)
        return randomize(model).eval()


# Chunks and steps of the temperature end within the prompt; dense layers and experts alternate.
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

# Nine embeddings of an image.
LLAMA4_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "image_size": 24,
    "patch_size": 4,
    "num_channels": 3,
    "vision_output_dim": 40,
    "projector_input_dim": 40,
    "projector_output_dim": 40,
    "pixel_shuffle_ratio": 0.5,
}
EXPERTS = {"num_local_experts": 5, "num_experts_per_tok": 2}
QWEN_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    """RoPE scaling, with a base that is nobody's default."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 20000.0, **parameters}}


def longrope(original: int, pairs: int, **parameters: Any) -> dict[str, Any]:
    """LongRoPE by random numbers, different for sequences up to `original` and longer."""
    factors = 1 + np.random.default_rng(pairs).random((2, pairs)) * [[0.5], [30]]
    short, long = factors.tolist()
    return rope(
        "longrope",
        short_factor=short,
        long_factor=long,
        original_max_position_embeddings=original,
        **parameters,
    )


# Of families that derive the width of a head, and have a key and a value for each query.
ALIKE = ("num_key_value_heads", "head_dim")
GEMMA = {"sliding_window": 70, "query_pre_attn_scalar": 40}

# By the name of the family, which the part before a slash must be.
CASES: dict[str, Case] = {
    "gemma2": Case("Gemma2", GEMMA),
    "gemma2/odd-uncapped-untied": Case(
        "Gemma2",
        {
            **GEMMA,
            "num_hidden_layers": 5,
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
    ),
    "gemma2/irregular": Case(
        "Gemma2",
        {
            **GEMMA,
            "layer_types": [f"{sees}_attention" for sees in ("full", "sliding", "sliding", "full")],
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma2/no-windows": Case(
        "Gemma2", {"layer_types": ["full_attention"] * 4, "query_pre_attn_scalar": 16}
    ),
    "gemma3_text": Case("Gemma3Text", {**GEMMA, "num_hidden_layers": 8}, "Gemma3ForCausalLM"),
    "gemma3_text/linear-capped": Case(
        "Gemma3Text",
        {
            **GEMMA,
            "num_hidden_layers": 7,
            "sliding_window_pattern": 3,
            "final_logit_softcapping": 2.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 7000.0},
            },
        },
        "Gemma3ForCausalLM",
    ),
    "gemma3_text/irregular-untied-biases": Case(
        "Gemma3Text",
        {
            **GEMMA,
            "layer_types": [f"{sees}_attention" for sees in ("full", "sliding", "sliding", "full")],
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
        "Gemma3ForCausalLM",
    ),
    "gpt2": Case("GPT2", {"n_inner": 56}, "GPT2LMHeadModel", without=(*ALIKE, "intermediate_size")),
    "gpt2/unscaled-untied-relu": Case(
        "GPT2",
        {"scale_attn_weights": False, "tie_word_embeddings": False, "activation_function": "relu"},
        "GPT2LMHeadModel",
        without=(*ALIKE, "intermediate_size"),
    ),
    "gpt_neox": Case("GPTNeoX", without=ALIKE),
    "gpt_neox/serial-tied-half": Case(
        "GPTNeoX",
        {
            "use_parallel_residual": False,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_pytorch_tanh",
            "rotary_pct": 0.5,
            "rotary_emb_base": 25000,
        },
        without=ALIKE,
    ),
    "gpt_neox/no-attention-bias-yarn": Case(
        "GPTNeoX",
        {
            "attention_bias": False,
            **rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=128,
                partial_rotary_factor=1.0,
            ),
        },
        without=ALIKE,
    ),
    "llama": Case("Llama"),
    "llama/tied-biases": Case(
        "Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
    ),
    "llama/linear": Case("Llama", rope("linear", factor=3.3)),
    "llama/dynamic-below": Case("Llama", rope("dynamic", factor=4.0)),
    "llama/dynamic-beyond": Case(
        "Llama", {"max_position_embeddings": 128, **rope("dynamic", factor=4.0)}
    ),
    "llama/llama3": Case(
        "Llama",
        rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "llama/yarn": Case("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=128)),
    "llama/yarn-mscale": Case(
        "Llama",
        rope(
            "yarn",
            factor=8.0,
            original_max_position_embeddings=64,
            beta_fast=9.0,
            beta_slow=2.5,
            mscale=0.7,
            mscale_all_dim=1.4,
        ),
    ),
    "llama/yarn-attention-factor": Case(
        "Llama",
        rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=100,
            truncate=False,
            attention_factor=0.8,
        ),
    ),
    "llama/longrope-below": Case("Llama", longrope(400, 8)),
    "llama/longrope-beyond": Case("Llama", longrope(64, 8, factor=3.0, attention_factor=1.2)),
    "llama4": Case(
        "Llama4",
        {
            "text_config": {**SIZES, **LLAMA4},
            "vision_config": LLAMA4_VISION,
            "image_token_index": 90,
        },
        "Llama4ForConditionalGeneration",
        without=tuple(SIZES),
    ),
    "llama4_text": Case("Llama4Text", LLAMA4, "Llama4ForCausalLM"),
    "llama4_text/irregular": Case(
        "Llama4Text",
        {
            **LLAMA4,
            "moe_layers": [0, 3],
            "no_rope_layers": [1, 0, 0, 1],
            "layer_types": [f"{sees}_attention" for sees in ("full", "chunked", "full", "chunked")],
            "attention_bias": True,
            "use_qk_norm": False,
            "tie_word_embeddings": True,
            "num_experts_per_tok": 1,
        },
        "Llama4ForCausalLM",
    ),
    "llama4_text/dense": Case(
        "Llama4Text",
        {**LLAMA4, "moe_layers": [], "attn_temperature_tuning": False, "rope_parameters": None},
        "Llama4ForCausalLM",
    ),
    "mistral": Case("Mistral", {"sliding_window": 100}),
    "mistral/no-window-tied": Case(
        "Mistral",
        {"sliding_window": None, "head_dim": None, "tie_word_embeddings": True},
        written_as="llama",
    ),
    "mixtral": Case("Mixtral", EXPERTS),
    "mixtral/window-tied-all": Case(
        "Mixtral",
        {
            **EXPERTS,
            "sliding_window": 70,
            "tie_word_embeddings": True,
            "num_experts_per_tok": 5,
            "output_router_logits": True,
            "router_aux_loss_coef": 0.02,
        },
    ),
    "olmo2": Case("Olmo2"),
    "olmo2/tied-biases": Case("Olmo2", {"tie_word_embeddings": True, "attention_bias": True}),
    "phi3": Case("Phi3", {"pad_token_id": 0}, written_as="llama"),
    "phi3/window-tied": Case(
        "Phi3",
        {"pad_token_id": 0, "sliding_window": 90, "tie_word_embeddings": True},
        written_as="mistral",
    ),
    "phi3/partial": Case(
        "Phi3", {"pad_token_id": 0, "partial_rotary_factor": 0.75, "sliding_window": 90}
    ),
    "phi3/longrope-below": Case(
        "Phi3",
        {
            "pad_token_id": 0,
            "hidden_size": 96,
            "original_max_position_embeddings": 320,
            **longrope(320, 6, partial_rotary_factor=0.75),
        },
    ),
    "phi3/longrope-beyond": Case(
        "Phi3",
        {
            "pad_token_id": 0,
            "hidden_size": 96,
            "original_max_position_embeddings": 64,
            "partial_rotary_factor": 0.5,
            **longrope(64, 4, partial_rotary_factor=0.5),
            "sliding_window": 100,
        },
    ),
    "qwen2": Case("Qwen2"),
    "qwen2/late-windows-tied": Case(
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 90,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2/alternating": Case(
        "Qwen2",
        {
            "num_hidden_layers": 5,
            "use_sliding_window": True,
            "sliding_window": 90,
            "layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"],
        },
    ),
    "qwen3": Case("Qwen3"),
    "qwen3/tied-biases": Case("Qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
    "qwen3_moe": Case("Qwen3Moe", QWEN_EXPERTS),
    "qwen3_moe/every-other-tied-biases": Case(
        "Qwen3Moe",
        {
            **QWEN_EXPERTS,
            "num_hidden_layers": 5,
            "decoder_sparse_step": 2,
            "norm_topk_prob": True,
            "tie_word_embeddings": True,
            "attention_bias": True,
        },
    ),
    "qwen3_moe/some-dense-windows": Case(
        "Qwen3Moe",
        {
            **QWEN_EXPERTS,
            "mlp_only_layers": [0, 3],
            "use_sliding_window": True,
            "sliding_window": 80,
            "num_experts_per_tok": 1,
        },
    ),
    "smollm3": Case("SmolLM3", {"pad_token_id": 0, "num_hidden_layers": 6}),
    "smollm3/windows-biases": Case(
        "SmolLM3",
        {
            "pad_token_id": 0,
            "num_hidden_layers": 5,
            "no_rope_layer_interval": 3,
            "use_sliding_window": True,
            "sliding_window": 60,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    "smollm3/irregular": Case(
        "SmolLM3",
        {
            "pad_token_id": 0,
            "no_rope_layers": [1, 0, 0, 1, 1, 0],
            "use_sliding_window": True,
            "sliding_window": 60,
            "layer_types": [f"{sees}_attention" for sees in ("full", "full", "sliding", "sliding")],
        },
    ),
}


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draws every parameter: scales of norms around one, the others around zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            is_scale = re.search("norm|ln_", name.lower()) and name.endswith("weight")
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
