"""GPT-J in the Hugging Face format: one LayerNorm for both sublayers, adjacent pairs rotated."""

import math

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import Part, activation, fixed, setting
from jaxllm.interop.families.common.described.rules import (
    OUTPUT,
    attention_rules,
    embedding_rule,
    mlp_rules,
    norm_rules,
)
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.rules.rule import Rule

FIXED = {
    "norms.kind": "layer",
    "norms.placement": "parallel_shared",
    "rope.layout": "interleaved",
    "rope.theta": 10000.0,
    "rope.scaling": None,
    "mlp.gated": False,
    "mlp.bias": True,
    "head.bias": True,
}
NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
PREFIX = "transformer."


def read_rotated(fields: Fields) -> Json:
    """Reads how many elements of a head are rotated; null, which no model has, is refused."""
    head_dim = fields.take("n_embd", int) // max(fields.take("n_head", int), 1)
    rotated = fields.take_nullable("rotary_dim", int, 64)
    if rotated is None or not 0 < rotated <= head_dim:
        fields.problems.append(f"rotary_dim={rotated} is not supported, only 1 to {head_dim}")
        fields.refused["rotary_dim"] = head_dim
        return {}
    fraction = rotated / head_dim
    if int(head_dim * fraction) != rotated:
        fraction = math.nextafter(fraction, 1)
    return {"rope.fraction": fraction}


def write_rotated(config: DecoderConfig, base: Json) -> Json:
    """Writes the field of `read_rotated`."""
    return {"rotary_dim": int(config.head_dim * config.rope.fraction)}


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head's weight."""
    theirs, ours = PREFIX + "h.{L}.", "layers.{L}."
    norms = {"final_norm": PREFIX + "ln_f", ours + "attn_norm": theirs + "ln_1"}
    return [
        embedding_rule(PREFIX + "wte"),
        *norm_rules(config, norms),
        *attention_rules(config, theirs + "attn", names=OUTPUT),
        *mlp_rules(config, theirs + "mlp.", "fc_in", "fc_out"),
        Rule("lm_head.bias : V", "head_bias : V"),
    ]


GPTJ = described_family(
    "gptj",
    "GPTJForCausalLM",
    (
        sizes(
            2048,
            has_head_dim=False,
            has_kv_heads=False,
            is_multi_head=True,
            has_mlp_dim=False,
            names=NAMES,
        ),
        Part(read_rotated, write_rotated, ("rope.fraction",)),
        setting("layer_norm_epsilon", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, False),
        activation("activation_function", "gelu_new"),
        fixed(FIXED),
    ),
    rules,
    head_bias=True,
    prefix=PREFIX,
    embedding="wte.weight",
)
