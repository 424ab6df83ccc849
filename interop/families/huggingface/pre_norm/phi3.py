"""Phi-3 in the Hugging Face format: Llama with fused projections and LongRoPE, possibly partial."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.decoder_axes import head_pairs
from jaxllm.interop.families.common.family import Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import (
    read_uniform_window,
    unsupported_by_one_window,
    unsupported_layers,
)
from jaxllm.interop.families.common.llama_like import (
    decoder_table,
    norm_rules,
    outer_rules,
    read_decoder,
    write_decoder,
)
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.rope import read_rope, write_rope
from jaxllm.interop.families.common.unsupported import refuse
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.rule import Rule

SUPPORTED = (
    *("rope.theta", "rope.scaling", "rope.fraction", "head.tied", "mlp.activation"),
    *("attention.window", "pattern"),
)


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    config = {
        **read_decoder(fields, max_position_embeddings=4096, rms_norm_eps=1e-5),
        **read_rope(
            fields, fraction=1.0, original=4096, aliases={"su": "longrope", "yarn": "longrope"}
        ),
        **read_uniform_window(fields),
    }
    scaling = config.get("rope.scaling")
    if scaling is not None and scaling.kind != "longrope":
        fields.problems.append(f"{scaling.kind} RoPE scaling is not supported, only longrope")
    return config, Layout()


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    scaling = config.rope.scaling
    width, heads = config.embed_dim, config.num_heads * config.head_dim
    refuse(
        "model_type 'phi3'",
        config,
        SUPPORTED,
        {
            **unsupported_layers(
                config, attention=("full", "window"), rope=("global",), mlp=("dense",)
            ),
            **unsupported_by_one_window(config),
            "RoPE scaling other than longrope": scaling is not None and scaling.kind != "longrope",
            "longrope with head_dim other than embed_dim / num_heads": (
                scaling is not None and heads != width
            ),
            "rope.layout='interleaved' with partial RoPE": (
                config.rope.layout == "interleaved" and config.rope.fraction != 1
            ),
        },
    )
    return {
        **write_decoder(config, base, "phi3", "Phi3ForCausalLM"),
        **write_rope(config),
        "partial_rotary_factor": config.rope.fraction,
        "sliding_window": config.attention.window,
    }


def table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor; q, k and v are fused, and so are gate and up."""
    pairs, attn, mlp = head_pairs(config), "layers.{L}.attn.", "layers.{L}.mlp."
    fused = "model.layers.{L}.self_attn.qkv_proj.weight"
    rules = [
        *outer_rules(config),
        *norm_rules(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        Rule(f"{fused}#q : (N r h) D", f"{attn}q_proj.kernel : D N {pairs}"),
        Rule(f"{fused}#k : (K r h) D", f"{attn}k_proj.kernel : D K {pairs}"),
        Rule(f"{fused}#v : (K H) D", f"{attn}v_proj.kernel : D K H"),
        Rule("model.layers.{L}.self_attn.o_proj.weight : D (N H)", f"{attn}o_proj.kernel : N H D"),
        Rule(
            "model.layers.{L}.mlp.gate_up_proj.weight : (G F) D",
            mlp + "{G=gate|up}_proj.kernel : D F",
        ),
        Rule("model.layers.{L}.mlp.down_proj.weight : D F", mlp + "down_proj.kernel : F D"),
    ]
    return decoder_table(config, rules)


PHI3 = hf_family("phi3", read_config, write_config, table)
