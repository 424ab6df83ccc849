"""T5's encoder alone, as text encoders of image models and embedding models have it."""

from collections.abc import Mapping

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.common.family import Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.unsupported import refuse, unsupported_values
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.rule import Rule

from .t5 import EMBEDDINGS, is_encoder_alone, read_t5, stack_rules, write_encoder

# Settings of every encoder of T5.
FIXED: Json = {"positions.kind": "relative", "attention.scale": 1.0, "attention.causal": False}


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json`, whose fields about the decoder are ignored."""
    fields.require("is_encoder_decoder", True, False)
    both = read_t5(fields, has_own_head=False)
    vocab_size = both["decoder"]["vocab_size"]
    return {**both["encoder"], "vocab_size": vocab_size, "head.kind": "none"}, Layout()


def write_config(config: DecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    refuse(
        "T5's encoder",
        config,
        (*FIXED, "positions.relative", "mlp.activation", "mlp.gated", "head.tied"),
        {
            **unsupported_values(config, FIXED),
            f"num_kv_heads={config.num_kv_heads}": config.num_kv_heads != config.num_heads,
        },
    )
    return {
        "architectures": ["T5EncoderModel"],
        "pad_token_id": 0,
        "is_encoder_decoder": False,
        **{name: value for name, value in base.items() if name != "dtype"},
        "vocab_size": config.vocab_size,
        **write_encoder(config),
        "torch_dtype": config.numerics.param_dtype,
    }


def table(config: DecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor of T5's encoder."""
    buckets = config.positions.relative
    return RuleTable(
        (
            Rule("shared.weight : V D", "embed.embedding : V D"),
            *stack_rules("encoder", config, prefix=""),
        ),
        {
            "L_encoder": config.num_layers,
            "V": config.vocab_size,
            "D": config.embed_dim,
            "N": config.num_heads,
            "H": config.head_dim,
            "F": config.mlp_dim,
            "U": 0 if buckets is None else buckets.count,
        },
        tied={"encoder.embed_tokens.weight": "shared.weight"},
    )


T5_ENCODER = hf_family(
    "t5",
    read_config,
    write_config,
    table,
    prefix="",
    embeddings=EMBEDDINGS,
    name="t5_encoder",
    applies=is_encoder_alone,
    auto_class="T5EncoderModel",
)
