"""OLMoE in the Hugging Face format: experts on every layer, QK norm over all heads."""

from functools import partial

from jaxllm.config import DecoderConfig, LayerKind
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
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.experts import (
    expert_rules,
    read_expert_layout,
    read_experts,
    unsupported_by_softmax_experts,
    write_experts,
)
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.llama_like import attention_rules, end_rules, norm_rules
from jaxllm.interop.rules.rule import Rule

FIXED = {"attention.qk_norm": "full", "pattern": (LayerKind(mlp="experts"),)}
# Experts are as wide as `intermediate_size` says.
READ = partial(read_experts, width="intermediate_size", balance=0.01)
WRITE = partial(write_experts, width="intermediate_size", balance=0.01)


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    return [
        *end_rules(),
        *norm_rules(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention_rules(config),
        *expert_rules(config, layout, under="mlp", **names),
    ]


OLMOE = described_family(
    "olmoe",
    "OlmoeForCausalLM",
    (
        sizes(4096, has_head_dim=False),
        setting("rms_norm_eps", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, False),
        switch("attention_bias", ("attention.qkv_bias", "attention.out_bias"), default=False),
        activation("hidden_act", "silu"),
        fixed(FIXED),
        required("clip_qkv", None),
        rope(),
        full_attention(),
        Part(
            lambda fields: {"experts": READ(fields, 64, 8)},
            WRITE,
            ("experts",),
            unsupported_by_softmax_experts,
        ),
    ),
    rules,
    read_layout=read_expert_layout,
)
