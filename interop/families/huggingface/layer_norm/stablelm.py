"""StableLM in the Hugging Face format: Llama with LayerNorm, and a quarter of each head rotated."""

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import activation, choice, fixed, setting
from jaxllm.interop.families.common.described.rotary import full_attention, rope
from jaxllm.interop.families.common.described.rules import (
    attention_rules,
    embedding_rule,
    norm_rules,
)
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.llama_like import gated_mlp_rules
from jaxllm.interop.rules.rule import Rule


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    theirs, ours = "model.layers.{L}.", "layers.{L}."
    norms = {"final_norm": "model.norm", ours + "attn_norm": theirs + "input_layernorm"}
    if config.norms.placement == "pre":
        norms[ours + "mlp_norm"] = theirs + "post_attention_layernorm"
    own = []
    if config.attention.qk_norm == "each_head":
        own = [
            Rule(
                f"{theirs}self_attn.{x}_layernorm.norms.{{{heads}}}.weight : H",
                f"{ours}attn.{x}_norm.scale : {heads} H",
            )
            for x, heads in (("q", "N"), ("k", "K"))
        ]
    return [
        embedding_rule("model.embed_tokens"),
        *norm_rules(config, norms),
        *attention_rules(config, theirs + "self_attn"),
        *own,
        *gated_mlp_rules(config),
    ]


STABLELM = described_family(
    "stablelm",
    "StableLmForCausalLM",
    (
        sizes(4096, kv_heads=32, has_head_dim=False),
        setting("layer_norm_eps", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, False),
        setting("use_qkv_bias", "attention.qkv_bias", bool, False),
        choice("qk_layernorm", "attention.qk_norm", {False: "none", True: "each_head"}, False),
        choice(
            "use_parallel_residual",
            "norms.placement",
            {False: "pre", True: "parallel_shared"},
            default=False,
        ),
        activation("hidden_act", "silu"),
        fixed({"norms.kind": "layer"}),
        rope(fraction=0.25),
        full_attention(),
    ),
    rules,
)
