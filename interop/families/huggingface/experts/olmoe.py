"""OLMoE in the Hugging Face format: experts on every layer, QK norm over all heads."""

from jaxllm.config import DecoderConfig, ExpertsConfig, LayerKind
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
    read_balance,
    read_expert_layout,
    read_num_experts,
    unsupported_by_softmax_experts,
    write_balance,
)
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.llama_like import attention_rules, end_rules, norm_rules
from jaxllm.interop.rules.rule import Rule

FIXED = {"attention.qk_norm": "full", "pattern": (LayerKind(mlp="experts"),)}
USUAL_BALANCE = 0.01


def read_experts(fields: Fields) -> Json:
    """Reads the experts, which are as wide as `intermediate_size` says."""
    experts = fields.build(
        ExpertsConfig,
        num_experts=read_num_experts(fields, 64),
        top_k=fields.take("num_experts_per_tok", int, 8),
        mlp_dim=fields.take("intermediate_size", int),
        normalize=fields.take("norm_topk_prob", bool, False),
        **read_balance(fields, USUAL_BALANCE),
    )
    return {"experts": experts}


def write_experts(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_experts`."""
    experts = config.experts
    assert experts is not None, "refused otherwise"
    return {
        "num_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "intermediate_size": experts.mlp_dim,
        "norm_topk_prob": experts.normalize,
        **write_balance(experts, {"router_aux_loss_coef": USUAL_BALANCE, **base}),
    }


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
        Part(read_experts, write_experts, ("experts",), unsupported_by_softmax_experts),
    ),
    rules,
    read_layout=read_expert_layout,
)
