"""gpt-oss in the Hugging Face format: attention sinks, and experts with biases and a clamped gate.

OpenAI, 2025, "gpt-oss-120b & gpt-oss-20b Model Card". The released experts are in MXFP4, which
`jaxllm.interop.formats.quantized` decodes to the tensors that the rules name.
"""

from jaxllm.config import ClampConfig, DecoderConfig, ExpertsConfig, LayerKind
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import Part, fixed, required, setting, switch
from jaxllm.interop.families.common.described.rotary import layer_types
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.experts import (
    read_balance,
    read_num_experts,
    unsupported_by_softmax_experts,
    write_balance,
)
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.llama_like import attention_rules, end_rules, norm_rules
from jaxllm.interop.families.common.rope import PARAMETERS, SCALING, read_rope, write_rope
from jaxllm.interop.rules.rule import Rule

KINDS = {
    "sliding_attention": LayerKind(attention="window", mlp="experts"),
    "full_attention": LayerKind(mlp="experts"),
}
THETA = 150000.0
# What transformers takes if a file says nothing on RoPE.
USUAL_ROPE = {
    **{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0},
    **{"truncate": False, "original_max_position_embeddings": 4096},
}


def every_other_slides(fields: Fields, count: int) -> list[str]:
    """Returns the types of layers that are not listed: the first slides, the second does not."""
    return ["full_attention" if i % 2 else "sliding_attention" for i in range(count)]


def read_scaled_rope(fields: Fields) -> Json:
    """Reads RoPE, which is scaled unless the file says otherwise."""
    if not any(fields.data.get(name) for name in (PARAMETERS, SCALING)):
        fields.data = {**fields.data, SCALING: USUAL_ROPE}
    return read_rope(fields, THETA)


def write_scaled_rope(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_scaled_rope`."""
    written = write_rope(config)
    return {**written, SCALING: written[SCALING] or {"rope_type": "default"}}


def read_experts(fields: Fields) -> Json:
    """Reads the experts and their clamped gate; the router's softmax is over the chosen experts."""
    experts = fields.build(
        ExpertsConfig,
        num_experts=read_num_experts(fields, 128),
        top_k=fields.take("num_experts_per_tok", int, 4),
        mlp_dim=fields.take("intermediate_size", int),
        normalize=True,
        router_bias=True,
        **read_balance(fields),
    )
    clamp = fields.build(
        ClampConfig,
        limit=fields.take("swiglu_limit", float, 7.0),
        alpha=fields.take("swiglu_alpha", float, 1.702),
    )
    return {"experts": experts, "mlp.clamp": clamp}


def write_experts(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_experts`; of the gate, those that are not usual."""
    experts, clamp = config.experts, config.mlp.clamp
    assert experts is not None, "refused otherwise"
    assert clamp is not None, "refused otherwise"
    gate = {"swiglu_limit": clamp.limit, "swiglu_alpha": clamp.alpha}
    return {
        "num_local_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "intermediate_size": experts.mlp_dim,
        **write_balance(experts, base),
        **gate,
    }


def other_experts(config: DecoderConfig) -> dict[str, bool]:
    """Flags what the experts of this family do not have."""
    common = unsupported_by_softmax_experts(config)
    experts = config.experts
    return {
        **{name: wrong for name, wrong in common.items() if name != "experts.router_bias=True"},
        "experts.router_bias=False": experts is not None and not experts.router_bias,
        "experts.normalize=False": experts is not None and not experts.normalize,
        "mlp.clamp=None": config.mlp.clamp is None,
    }


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head.

    G counts gate and up, whose columns alternate; they and their outputs are not transposed.
    """
    theirs, ours = "model.layers.{L}.", "layers.{L}."
    experts, mlp, into = theirs + "mlp.experts.", ours + "mlp.", "{G=gate_proj|up_proj}"
    sides = {
        theirs + "self_attn.sinks : N": ours + "attn.sinks : N",
        theirs + "mlp.router.weight : E D": mlp + "router.kernel : D E",
        theirs + "mlp.router.bias : E": mlp + "router.bias : E",
        experts + "gate_up_proj : E D (X G)": f"{mlp}{into}.kernel : E D X",
        experts + "gate_up_proj_bias : E (X G)": f"{mlp}{into}.bias : E X",
        experts + "down_proj : E X D": mlp + "down_proj.kernel : E X D",
        experts + "down_proj_bias : E D": mlp + "down_proj.bias : E D",
    }
    return [
        *end_rules(),
        *norm_rules(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *attention_rules(config),
        *(Rule(stored, model) for stored, model in sides.items()),
    ]


GPT_OSS = described_family(
    "gpt_oss",
    "GptOssForCausalLM",
    (
        sizes(131072, kv_heads=8, head_dim=64),
        setting("rms_norm_eps", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, False),
        switch("attention_bias", ("attention.qkv_bias", "attention.out_bias"), default=True),
        required("hidden_act", "silu"),
        fixed({"norms.kind": "rms_float32", "attention.sinks": True, "mlp.bias": True}),
        Part(
            read_scaled_rope,
            write_scaled_rope,
            ("rope.theta", "rope.scaling", "rope.layout"),
        ),
        layer_types(every_other_slides, 128, KINDS),
        Part(read_experts, write_experts, ("experts", "mlp.clamp"), other_experts),
    ),
    rules,
)
