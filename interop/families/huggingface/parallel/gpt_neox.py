"""GPT-NeoX in the Hugging Face format: LayerNorm, parallel sublayers, partial RoPE."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.decoder_axes import decoder_sizes
from jaxllm.interop.families.common.family import Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.layer_types import require_full_attention
from jaxllm.interop.families.common.llama_like import (
    layer_norm_rules,
    read_activation,
    read_attention_bias,
    write_activation,
)
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.rope import read_rope, write_rope
from jaxllm.interop.families.common.unsupported import (
    refuse,
    unsupported_by_equal_heads,
    unsupported_by_one_bias,
    unsupported_values,
)
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.rule import Rule

SUPPORTED = (
    *("norms.kind", "norms.placement", "rope.theta", "rope.fraction", "rope.scaling"),
    *("attention.qkv_bias", "attention.out_bias", "mlp.activation", "mlp.gated", "mlp.bias"),
    "head.tied",
)

HEAD, IN_MEMORY = "embed_out.weight", "lm_head.weight"  # in files, and in modules


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    require_full_attention(fields)
    width, heads = fields.take("hidden_size", int), fields.take("num_attention_heads", int)
    fields.require("head_dim", None, width // max(heads, 1))
    is_parallel = fields.take("use_parallel_residual", bool, True)
    config = {
        "vocab_size": fields.take("vocab_size", int),
        "embed_dim": width,
        "num_layers": fields.take("num_hidden_layers", int),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // max(heads, 1),
        "mlp_dim": fields.take("intermediate_size", int),
        "max_len": fields.take("max_position_embeddings", int, 2048),
        "norms.kind": "layer",
        "norms.placement": "parallel" if is_parallel else "pre",
        "norms.eps": fields.take("layer_norm_eps", float, 1e-5),
        **_read_rope(fields),
        **read_attention_bias(fields, default=True),
        "mlp.activation": read_activation(fields, "hidden_act", "gelu"),
        "mlp.gated": False,
        "mlp.bias": True,
        "head.tied": fields.take("tie_word_embeddings", bool, False),
        "init.std": fields.take("initializer_range", float, 0.02),
    }
    return config, Layout(head=IN_MEMORY if IN_MEMORY in stored else "")


def _read_rope(fields: Fields) -> Json:
    """Reads RoPE, whose base and fraction have their own names here.

    Transformers 4 repeats them under the usual names, which must agree.
    """
    theta = fields.take("rotary_emb_base", float, 10000.0)
    fraction = fields.take("rotary_pct", float, 0.25)
    fields.require("rope_theta", theta)
    fields.require("partial_rotary_factor", fraction)
    return read_rope(fields, theta, fraction=fraction)


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    heads, width = config.num_heads, config.embed_dim
    refuse(
        "model_type 'gpt_neox'",
        config,
        SUPPORTED,
        {
            **unsupported_values(config, {"norms.kind": "layer"}),
            f"norms.placement={config.norms.placement!r}": (
                config.norms.placement not in ("parallel", "pre")
            ),
            "rope.layout='interleaved'": config.rope.layout != "half",
            **unsupported_by_one_bias(config),
            "an MLP that is gated or without bias": config.mlp.gated or not config.mlp.bias,
            **unsupported_by_equal_heads(config),
        },
    )
    rope = write_rope(config)
    outdated = ("rope_parameters", "partial_rotary_factor", "dtype")
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        **{name: value for name, value in base.items() if name not in outdated},
        **write_activation(config, "hidden_act", base),
        **rope,
        "rotary_emb_base": rope["rope_theta"],
        "rotary_pct": config.rope.fraction,
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "hidden_size": width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": heads,
        "intermediate_size": config.mlp_dim,
        "max_position_embeddings": config.max_len,
        "layer_norm_eps": config.norms.eps,
        "use_parallel_residual": config.norms.placement == "parallel",
        "attention_bias": config.attention.qkv_bias,
        "tie_word_embeddings": config.head.tied,
        "initializer_range": config.init.std,
        "torch_dtype": config.numerics.param_dtype,
    }


def table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor; P counts each head's fused query, key and value."""
    block, ours = "gpt_neox.layers.{L}.", "layers.{L}."
    fused, part = block + "attention.query_key_value.", ours + "attn.{P=q|k|v}_proj."
    rules = [
        Rule("gpt_neox.embed_in.weight : V D", "embed.embedding : V D"),
        *layer_norm_rules("gpt_neox.final_layer_norm", "final_norm"),
        *layer_norm_rules(block + "input_layernorm", ours + "attn_norm"),
        *layer_norm_rules(block + "post_attention_layernorm", ours + "mlp_norm"),
        Rule(fused + "weight : (N P H) D", part + "kernel : D N H"),
        Rule(block + "attention.dense.weight : D (N H)", ours + "attn.o_proj.kernel : N H D"),
        Rule(block + "mlp.dense_h_to_4h.weight : F D", ours + "mlp.up_proj.kernel : D F"),
        Rule(block + "mlp.dense_h_to_4h.bias : F", ours + "mlp.up_proj.bias : F"),
        Rule(block + "mlp.dense_4h_to_h.weight : D F", ours + "mlp.down_proj.kernel : F D"),
        Rule(block + "mlp.dense_4h_to_h.bias : D", ours + "mlp.down_proj.bias : D"),
    ]
    if config.attention.qkv_bias:
        rules.append(Rule(fused + "bias : (N P H)", part + "bias : N H"))
    if config.attention.out_bias:
        rules.append(Rule(block + "attention.dense.bias : D", ours + "attn.o_proj.bias : D"))
    head = layout.head or HEAD
    if not config.head.tied:
        rules.append(Rule(f"{head} : V D", "lm_head.kernel : D V"))
    attention, mask = "gpt_neox.layers.*.attention.", "the causal mask, a constant"
    return RuleTable(
        tuple(rules),
        {**decoder_sizes(config), "P": 3},
        tied={head: "gpt_neox.embed_in.weight"} if config.head.tied else {},
        ignored={
            attention + "bias": mask,
            attention + "masked_bias": mask,
            attention + "rotary_emb.inv_freq": "derived from the config",
        },
    )


GPT_NEOX = hf_family(
    "gpt_neox",
    read_config,
    write_config,
    table,
    prefix="gpt_neox.",
    embeddings=("embed_in.weight",),
)
