"""Tiny random models of the source systems, one of each kind, as their own code saves them."""

import json
from pathlib import Path

import torch
from hf_cases import randomize

from jaxllm.interop.families import FAMILIES

# Sizes that differ from each other: a mix-up of axes changes a shape.
NIMA = {"d_model": 48, "n_heads": 6, "d_ff": 56, "max_seq_len": 320}
COMPONENTS = {
    "input_dim": 5,
    "output_dim": 5,
    "embed_dim": 48,
    "ffn_latent_dim": 56,
    "num_heads": 6,
    "max_seq_len": 160,
    "attention_type": "gqa",
    "num_groups": 2,
}
# Of two rows of 24 tokens or more, some find their expert full and go to the overflow expert.
EXPERTS = {
    "embed_dim": 48,
    "latent_dim": 56,
    "use_moe": True,
    "num_experts": 4,
    "capacity": 20,
    "topk": 2,
}
# By the model_type of their config files and a word, the rest of these.
CASES: dict[str, dict] = {
    "tlama": {
        "d_model": 48,
        "n_layers": 2,
        "n_heads": 6,
        "n_kv_heads": 2,
        "vocab_size": 96,
        "multiple_of": 16,
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_seq_len": 320,
    },
    # A layer of every kind; chunks and steps of the temperature end within the tokens.
    "llm": {
        "dim": 48,
        "n_layers": 4,
        "n_heads": 6,
        "n_kv_heads": 2,
        "vocab_size": 90,
        "multiple_of": 12,
        "norm_eps": 1e-5,
        "attention_chunk_size": 25,
        "use_scaled_rope": True,
        "nope_layer_interval": 4,
        "use_qk_norm": True,
        "attn_temperature_tuning": True,
        "floor_scale": 20.0,
        "moe_args": {"num_experts": 5, "top_k": 2, "interleave_moe_layer_step": 2},
    },
    "nima-gpt": {"vocab_size": 96, "n_layers": 2, **NIMA},
    "nima-transformer": {
        "src_vocab_size": 96,
        "tgt_vocab_size": 80,
        "n_encoder_layers": 2,
        "n_decoder_layers": 1,
        "pad_idx": 3,
        **NIMA,
    },
    "components-regression": {**COMPONENTS, "output_dim": 4, "num_layers": 2},
    "components-autoregressive": {**COMPONENTS, "num_layers": 2},
    "components-autoregressive/experts": {**COMPONENTS, "num_layers": 2, "ffn_config": EXPERTS},
    "components-encoder-decoder": {
        **COMPONENTS,
        "num_encoder_layers": 2,
        "num_decoder_layers": 1,
    },
}


def write(name: str, folder: Path) -> torch.nn.Module:
    """Saves the case of this name, and returns it: random numbers in every tensor."""
    return write_fields({"model_type": name.partition("/")[0], **CASES[name]}, folder)


def write_fields(fields: dict, folder: Path) -> torch.nn.Module:
    """Saves a model of this config file, and returns it: random numbers in every tensor."""
    [family] = [family for family in FAMILIES if family.model_type == fields["model_type"]]
    model = randomize(family.reference(fields)).eval()
    save(model, fields, folder)
    return model


def save(model: torch.nn.Module, fields: dict, folder: Path) -> None:
    """Saves a model as its own code does."""
    torch.save(model.state_dict(), folder / "state_dict.pth")
    (folder / "config.json").write_text(json.dumps(fields))
