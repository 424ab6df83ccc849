"""GPT-2 in the Hugging Face format: learned positions, LayerNorm, kernels stored as `Conv1D`.

Tensors are named `transformer.h.0...` in a full model and `h.0...` in the released checkpoints.
"""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.decoder_axes import decoder_sizes
from jaxllm.interop.families.common.family import Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.llama_like import (
    layer_norm_rules,
    read_activation,
    write_activation,
)
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.unsupported import (
    refuse,
    unsupported_by_equal_heads,
    unsupported_values,
)
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.rule import Rule

PREFIX, EMBEDDING = "transformer.", "wte.weight"
SUPPORTED = (
    *("norms.kind", "positions.kind", "attention.qkv_bias", "attention.out_bias"),
    *(
        "attention.scale",
        "attention.scale_by_depth",
        "mlp.activation",
        "mlp.gated",
        "mlp.bias",
        "head.tied",
    ),
)


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json`."""
    fields.ignore("reorder_and_upcast_attn")  # scores are always computed as it requests
    fields.require("add_cross_attention", False)
    width, heads = fields.take("n_embd", int, 768), fields.take("n_head", int, 12)
    is_scaled = fields.take("scale_attn_weights", bool, True)
    config = {
        "vocab_size": fields.take("vocab_size", int, 50257),
        "embed_dim": width,
        "num_layers": fields.take("n_layer", int, 12),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // max(heads, 1),
        "mlp_dim": fields.take("n_inner", int, 4 * width),
        "max_len": fields.take("n_positions", int, 1024),
        "norms.kind": "layer",
        "norms.eps": fields.take("layer_norm_epsilon", float, 1e-5),
        "positions.kind": "learned",
        "attention.qkv_bias": True,
        "attention.out_bias": True,
        "attention.scale": None if is_scaled else 1.0,
        "attention.scale_by_depth": fields.take("scale_attn_by_inverse_layer_idx", bool, False),
        "mlp.activation": read_activation(fields, "activation_function", "gelu_new"),
        "mlp.gated": False,
        "mlp.bias": True,
        "head.tied": fields.take("tie_word_embeddings", bool, True),
        "init.std": fields.take("initializer_range", float, 0.02),
    }
    return config, Layout()


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    width, attention, mlp = config.embed_dim, config.attention, config.mlp
    refuse(
        "model_type 'gpt2'",
        config,
        SUPPORTED,
        {
            **unsupported_values(config, {"norms.kind": "layer", "positions.kind": "learned"}),
            "projections without bias": not (
                attention.qkv_bias and attention.out_bias and mlp.bias
            ),
            "a gated MLP": mlp.gated,
            **unsupported_by_equal_heads(config),
            f"attention.scale={attention.scale}, only None or 1": (
                attention.scale not in (None, 1.0)
            ),
        },
    )
    return {
        "architectures": ["GPT2LMHeadModel"],
        **{name: value for name, value in base.items() if name != "dtype"},
        **write_activation(
            config, "activation_function", {"activation_function": "gelu_new", **base}
        ),
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": None if config.mlp_dim == 4 * width else config.mlp_dim,
        "n_positions": config.max_len,
        "layer_norm_epsilon": config.norms.eps,
        "scale_attn_weights": attention.scale is None,
        "scale_attn_by_inverse_layer_idx": attention.scale_by_depth,
        "tie_word_embeddings": config.head.tied,
        "initializer_range": config.init.std,
        "torch_dtype": config.numerics.param_dtype,
    }


def table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor; P counts the fused queries, keys and values."""
    prefix, embedding = PREFIX, PREFIX + EMBEDDING
    block, attn, mlp = prefix + "h.{L}.", "layers.{L}.attn.", "layers.{L}.mlp."
    rules = [
        Rule(embedding + " : V D", "embed.embedding : V D"),
        Rule(prefix + "wpe.weight : M D", "embed_position.embedding : M D"),
        *layer_norm_rules(prefix + "ln_f", "final_norm"),
        *layer_norm_rules(block + "ln_1", "layers.{L}.attn_norm"),
        *layer_norm_rules(block + "ln_2", "layers.{L}.mlp_norm"),
        Rule(block + "attn.c_attn.weight : D (P N H)", attn + "{P=q|k|v}_proj.kernel : D N H"),
        Rule(block + "attn.c_attn.bias : (P N H)", attn + "{P=q|k|v}_proj.bias : N H"),
        Rule(block + "attn.c_proj.weight : (N H) D", attn + "o_proj.kernel : N H D"),
        Rule(block + "attn.c_proj.bias : D", attn + "o_proj.bias : D"),
        Rule(block + "mlp.c_fc.weight : D F", mlp + "up_proj.kernel : D F"),
        Rule(block + "mlp.c_fc.bias : F", mlp + "up_proj.bias : F"),
        Rule(block + "mlp.c_proj.weight : F D", mlp + "down_proj.kernel : F D"),
        Rule(block + "mlp.c_proj.bias : D", mlp + "down_proj.bias : D"),
    ]
    if not config.head.tied:
        rules.append(Rule("lm_head.weight : V D", "lm_head.kernel : D V"))
    return RuleTable(
        tuple(rules),
        {**decoder_sizes(config), "P": 3, "M": config.max_len},
        tied={"lm_head.weight": embedding} if config.head.tied else {},
    )


GPT2 = hf_family("gpt2", read_config, write_config, table, prefix=PREFIX, embeddings=(EMBEDDING,))
