"""Qwen3.5's text model in the Hugging Face format: gated DeltaNet and gated attention.

Qwen team, 2026. Its positions are those of a text; layers that predict further tokens are carried
along as they are.
"""

from jaxllm.config import DecoderConfig, LayerKind
from jaxllm.interop.families.common.described.delta import (
    delta_axes,
    delta_rules,
    gated_attention_rules,
    gated_layers,
    read_attentions,
    separate_inputs,
    unsupported_kinds,
    write_attentions,
)
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import Part, activation, setting, switch
from jaxllm.interop.families.common.described.rotary import rope
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.family import Layout
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import shortest_pattern, unsupported_layers
from jaxllm.interop.families.common.llama_like import end_rules, gated_mlp_rules, norm_rules
from jaxllm.interop.families.common.rope import PARAMETERS, SCALING
from jaxllm.interop.rules.rule import Rule

from .qwen3_next import PREDICTING

ROPE = rope(fraction=0.25)
# How pairs are divided between the axes of an image, which have the same positions in a text.
OF_IMAGES = ("mrope_section", "mrope_interleaved")


def read_rotary(fields: Fields) -> Json:
    """Reads RoPE, without what is for images alone."""
    for name in (PARAMETERS, SCALING):
        if isinstance(given := fields.data.get(name), dict):
            kept = {key: value for key, value in given.items() if key not in OF_IMAGES}
            fields.data = {**fields.data, name: kept}
    return ROPE.read(fields)


def read_layers(fields: Fields) -> Json:
    """Reads which layers have attention."""
    attentions, delta = read_attentions(fields)
    kinds = [LayerKind(attention=one) for one in attentions if delta is not None or one == "full"]
    return {"attention.delta": delta, "pattern": shortest_pattern(kinds) or (LayerKind(),)}


def rules(config: DecoderConfig, layout: Layout) -> list[Rule]:
    """Returns the rules for every tensor but the head."""
    return [
        *end_rules(),
        *norm_rules(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        *gated_attention_rules(config),
        *delta_rules(config, separate_inputs()),
        *gated_mlp_rules(config),
    ]


QWEN3_5 = described_family(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    (
        sizes(32768, kv_heads=4, head_dim=256),
        setting("rms_norm_eps", "norms.eps", float, 1e-6),
        setting("tie_word_embeddings", "head.tied", bool, False),
        switch("attention_bias", ("attention.qkv_bias", "attention.out_bias"), default=False),
        activation("hidden_act", "silu"),
        gated_layers(),
        Part(read_rotary, ROPE.write, ROPE.supports, ROPE.unsupported),
        Part(
            read_layers,
            write_attentions,
            ("attention.delta", "pattern"),
            lambda config: {
                **unsupported_kinds(config),
                **unsupported_layers(config, mlp=("dense",)),
            },
        ),
    ),
    rules,
    axes=delta_axes,
    carried=lambda layout: PREDICTING,
)
