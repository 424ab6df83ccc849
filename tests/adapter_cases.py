"""Tiny models of transformers with PEFT adapters, random numbers in every tensor, on disk."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
)

VOCABULARY = 64
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, 9))
SIZES: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY},
    **{"max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1}
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
# Of each: the config, and the options of LoRA.
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (
        LlamaConfig(**SIZES, head_dim=16),
        {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    ),
    "norms and head in full": (
        LlamaConfig(**SIZES),
        {
            "target_modules": ["o_proj"],
            "modules_to_save": ["embed_tokens", "lm_head", "input_layernorm"],
        },
    ),
    "tied embedding in full": (
        LlamaConfig(**SIZES, tie_word_embeddings=True),
        {
            "target_modules": "all-linear",
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ),
    "experts": (
        MixtralConfig(**SIZES, num_local_experts=4),
        {"target_modules": ["v_proj"], "target_parameters": list(EXPERTS)},
    ),
    "fused q, k and v": (Phi3Config(**SIZES), {"target_modules": "all-linear"}),
    "transposed kernels": (
        GPT2Config(**GPT2, vocab_size=VOCABULARY),
        {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True},
    ),
}


def draw(model: torch.nn.Module, seed: int, trained: bool = False) -> None:
    """Draws every parameter, or those that are trained; norm scales are around 1, but none is 1."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not trained:
            parameter.data.normal_(1.0 if "norm" in name or "ln_" in name else 0.0, 0.2)


def make_base(config: Any, folder: Path) -> torch.nn.Module:
    """Saves a model of transformers with random parameters, and returns it in float32."""
    draw(model := AutoModelForCausalLM.from_config(config), seed=0)
    model.save_pretrained(folder)
    return open_base(folder)


def open_base(folder: Path) -> torch.nn.Module:
    """Opens a saved model."""
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def make_adapter(case: str, folder: Path, **changes: Any) -> torch.nn.Module:
    """Saves a base and an adapter with random parameters; returns PEFT's model of both."""
    config, options = CASES[case]
    base = make_base(config, folder / "base")
    given = {"r": 4, "lora_alpha": 6, **options, **changes}
    model = peft.get_peft_model(base, peft.LoraConfig(**given)).eval()
    draw(model, seed=1, trained=True)
    model.save_pretrained(folder / "adapter")
    file = folder / "adapter" / "adapter_config.json"
    named = json.loads(file.read_text()) | {"base_model_name_or_path": str(folder / "base")}
    file.write_text(json.dumps(named))
    return model


def logits_of(model: torch.nn.Module) -> np.ndarray:
    """The logits of `TOKENS`."""
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def our_logits(model: Any) -> np.ndarray:
    """Our model's logits of `TOKENS`."""
    return np.asarray(jax.jit(lambda model: model(TOKENS)[0])(model))
