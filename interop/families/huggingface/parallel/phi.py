"""Phi-1 to Phi-2 in the Hugging Face format: one LayerNorm for both sublayers, many biases."""

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import activation, choice, fixed, setting
from jaxllm.interop.families.common.described.rotary import full_attention, rope
from jaxllm.interop.families.common.described.rules import (
    LLAMA,
    attention_rules,
    embedding_rule,
    mlp_rules,
    norm_rules,
)
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.rules.rule import Rule

FIXED = {
    "norms.kind": "layer",
    "norms.placement": "parallel_shared",
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.gated": False,
    "mlp.bias": True,
    "head.bias": True,
}
NAMES = {**LLAMA, "o_proj": "dense"}


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head's weight."""
    theirs, ours = "model.layers.{L}.", "layers.{L}."
    attention = theirs + "self_attn"
    norms = {"final_norm": "model.final_layernorm", ours + "attn_norm": theirs + "input_layernorm"}
    own = []
    if config.attention.qk_norm == "head":
        own = [
            Rule(
                f"{attention}.{x}_layernorm.{outer} : H",
                f"{ours}attn.{x}_norm.{inner} : H",
            )
            for x in "qk"
            for outer, inner in (("weight", "scale"), ("bias", "bias"))
        ]
    return [
        embedding_rule("model.embed_tokens"),
        *norm_rules(config, norms),
        *attention_rules(config, attention, names=NAMES),
        *own,
        *mlp_rules(config, theirs + "mlp.", "fc1", "fc2"),
        Rule("lm_head.bias : V", "head_bias : V"),
    ]


PHI = described_family(
    "phi",
    "PhiForCausalLM",
    (
        sizes(2048, has_head_dim=False),
        setting("layer_norm_eps", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, False),
        choice("qk_layernorm", "attention.qk_norm", {False: "none", True: "head"}, default=False),
        activation("hidden_act", "gelu_new"),
        fixed(FIXED),
        rope(fraction=0.5),
        full_attention(),
    ),
    rules,
    head_bias=True,
)
