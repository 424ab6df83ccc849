"""Tiny random models of every source system, saved in its own checkpoint format."""

import json
from pathlib import Path

import torch
from hf_cases import randomize

from jaxllm.interop.families import FAMILIES

# All sizes are different, so that mixed-up axes change a shape.
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
# With two rows of 24 or more tokens, some tokens exceed the capacity and use the overflow expert.
EXPERTS = {
    "embed_dim": 48,
    "latent_dim": 56,
    "use_moe": True,
    "num_experts": 4,
    "capacity": 20,
    "topk": 2,
}
# The fields of each config file except model_type. A key is a model_type, optionally followed by
# a slash and the name of a variant.
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
    # Every kind of layer; attention chunks and temperature steps end within the test sequences.
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
    """Builds a case with random numbers in every tensor, saves it in `folder` and returns it."""
    return write_fields({"model_type": name.partition("/")[0], **CASES[name]}, folder)


def write_fields(fields: dict, folder: Path) -> torch.nn.Module:
    """Builds the model of a config file with random numbers, saves it and returns it."""
    [family] = [family for family in FAMILIES if family.model_type == fields["model_type"]]
    model = randomize(family.reference(fields)).eval()
    save(model, fields, folder)
    return model


def save(model: torch.nn.Module, fields: dict, folder: Path) -> None:
    """Saves a model as its own code does."""
    torch.save(model.state_dict(), folder / "state_dict.pth")
    (folder / "config.json").write_text(json.dumps(fields))
