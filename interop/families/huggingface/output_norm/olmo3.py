"""OLMo 3 in the Hugging Face format: OLMo 2 with sliding windows, whose RoPE is never scaled."""

from jaxllm.config import DecoderConfig, LayerKind
from jaxllm.interop.families.common.described.family import described_family
from jaxllm.interop.families.common.described.part import (
    Part,
    activation,
    fixed,
    setting,
    switch,
)
from jaxllm.interop.families.common.described.rotary import layer_types
from jaxllm.interop.families.common.described.sizes import sizes
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.rope import read_rope_by_layer, write_rope

from .olmo2 import FIXED, olmo2_rules

KINDS = {
    "sliding_attention": LayerKind(attention="window", rope="local"),
    "full_attention": LayerKind(),
}
THETA = 500000.0


def every_fourth_is_full(fields: Fields, count: int) -> list[str]:
    """Returns the types of layers that are not listed: the last of four sees all tokens."""
    return ["sliding_attention" if (i + 1) % 4 else "full_attention" for i in range(count)]


def read_both_ropes(fields: Fields) -> Json:
    """Reads RoPE; before transformers 5, its layers had one base and the full ones a scaling.

    Another base than the usual one is then refused: transformers 5 takes it for full layers alone.
    """
    fields.require("rope_theta", None, THETA)
    return read_rope_by_layer(fields, THETA, THETA)


def write_both_ropes(config: DecoderConfig, base: Json) -> Json:
    """Writes the fields of `read_both_ropes`, those of version 5 if a base is not the usual one."""
    old = write_rope(config)
    if (config.rope.theta, config.rope.local_theta) == (THETA, THETA):
        return old
    full = {"rope_type": "default", **(old["rope_scaling"] or {}), "rope_theta": config.rope.theta}
    local = {"rope_type": "default", "rope_theta": config.rope.local_theta}
    return {"rope_parameters": {"full_attention": full, "sliding_attention": local}}


OLMO3 = described_family(
    "olmo3",
    "Olmo3ForCausalLM",
    (
        sizes(2048),
        setting("rms_norm_eps", "norms.eps", float, 1e-5),
        setting("tie_word_embeddings", "head.tied", bool, False),
        fixed(FIXED),
        switch("attention_bias", ("attention.qkv_bias", "attention.out_bias"), False),
        activation("hidden_act", "silu"),
        Part(
            read_both_ropes,
            write_both_ropes,
            ("rope.theta", "rope.local_theta", "rope.scaling"),
        ),
        layer_types(every_fourth_is_full, 4096, KINDS),
    ),
    olmo2_rules,
)
