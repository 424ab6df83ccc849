"""Falcon in the Hugging Face format: parallel sublayers with one LayerNorm, or one for each."""

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import (
    Part,
    activation,
    fixed,
    required,
    setting,
    switch,
)
from jaxllm.interop.families.common.described.rotary import full_attention, rope
from jaxllm.interop.families.common.described.rules import (
    embedding_rule,
    fused_qkv_rules,
    grouped_qkv_rules,
    mlp_rules,
    norm_rules,
)
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.torch_modules import linear_rules
from jaxllm.interop.rules.rule import Rule

BIASES = ("attention.qkv_bias", "attention.out_bias", "mlp.bias")
NAMES = {"intermediate_size": "ffn_hidden_size"}
PREFIX = "transformer."


def read_architecture(fields: Fields) -> Json:
    """Reads the number of keys and values, and where norms are.

    The new architecture has groups of queries with one key, and a norm for each sublayer.
    """
    heads = fields.take("num_attention_heads", int)
    given = fields.take("num_kv_heads", int, heads)
    is_parallel = fields.take("parallel_attn", bool, True)
    is_shared = fields.take("multi_query", bool, True)
    if not fields.take("new_decoder_architecture", bool, False):
        fields.require("num_ln_in_parallel_attn", None, 1)
        return {
            "num_kv_heads": 1 if is_shared else heads,
            "norms.placement": "parallel_shared" if is_parallel else "pre",
        }
    fields.require("parallel_attn", True)
    norms = fields.take("num_ln_in_parallel_attn", int, 2)
    fields.require("num_ln_in_parallel_attn", None, 1, 2)
    return {
        "num_kv_heads": given,
        "norms.placement": "parallel" if norms == 2 else "parallel_shared",
    }


def is_new(config: DecoderConfig) -> bool:
    """Whether a model needs the new architecture."""
    return config.norms.placement == "parallel" or config.num_kv_heads not in (1, config.num_heads)


def write_architecture(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_architecture`."""
    placement = config.norms.placement
    norms = {"parallel": 2, "parallel_shared": 1}
    kept = base.get("new_decoder_architecture", False) and placement != "pre"
    return {
        "num_kv_heads": config.num_kv_heads,
        "multi_query": config.num_kv_heads == 1,
        "parallel_attn": placement != "pre",
        "new_decoder_architecture": is_new(config) or kept,
        "num_ln_in_parallel_attn": norms[placement] if is_new(config) or kept else None,
    }


def other_architecture(config: DecoderConfig) -> dict[str, bool]:
    """Flags what neither architecture has."""
    placement = config.norms.placement
    return {
        f"norms.placement={placement!r}": (placement not in ("pre", "parallel", "parallel_shared")),
        "norms.placement='pre' with several queries for each of several keys": (
            placement == "pre" and is_new(config)
        ),
    }


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    theirs, ours = PREFIX + "h.{L}.", "layers.{L}."
    attention, bias = theirs + "self_attention.", config.attention.out_bias
    if config.norms.placement == "parallel":
        norms = {"attn_norm": "ln_attn", "mlp_norm": "ln_mlp"}
    else:
        norms = {"attn_norm": "input_layernorm"}
    if config.norms.placement == "pre":
        norms["mlp_norm"] = "post_attention_layernorm"
    names = {ours + own: theirs + name for own, name in norms.items()}
    fused = fused_qkv_rules if config.num_kv_heads == config.num_heads else grouped_qkv_rules
    return [
        embedding_rule(PREFIX + "word_embeddings"),
        *norm_rules(config, {"final_norm": PREFIX + "ln_f", **names}),
        *fused(config, attention + "query_key_value"),
        *linear_rules(attention + "dense", ours + "attn.o_proj", "D", "(N H)", bias=bias),
        *mlp_rules(config, theirs + "mlp.", "dense_h_to_4h", "dense_4h_to_h"),
    ]


FALCON = described_family(
    "falcon",
    "FalconForCausalLM",
    (
        sizes(
            2048,
            has_head_dim=False,
            has_kv_heads=False,
            has_mlp_dim=False,
            names=NAMES,
            old_width="n_embed",
        ),
        Part(read_architecture, write_architecture, ("norms.placement",), other_architecture),
        setting("layer_norm_epsilon", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, True),
        switch("bias", BIASES, default=False),
        required("alibi", False),
        activation("activation", "gelu"),
        fixed({"norms.kind": "layer", "mlp.gated": False}),
        rope(),
        full_attention(),
    ),
    rules,
    axes=lambda config: {"P": 3, "g": config.num_heads // config.num_kv_heads},
    prefix=PREFIX,
    embedding="word_embeddings.weight",
)
