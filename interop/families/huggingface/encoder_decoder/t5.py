"""T5 in the Hugging Face format (`model_type: t5`): the original, v1.1 and Flan."""

from collections.abc import Collection, Mapping
from typing import Any

from jaxllm.config import EncoderDecoderConfig, RelativeBuckets, StackConfig
from jaxllm.interop.families.common.encoder_decoder import refuse_both
from jaxllm.interop.families.common.family import Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.llama_like import (
    ACTIVATIONS,
    read_activation,
)
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.torch_modules import attention_rules, linear_rules
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.rule import Rule

NAMES = ("q", "k", "v", "o")
HEAD = "lm_head.weight"
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")
# The defaults of T5's config class in which other classes differ.
USUAL: Json = {
    "vocab_size": 32128,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "feed_forward_proj": "relu",
}


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    fields.require("is_encoder_decoder", True)
    return read_t5(fields, HEAD in stored), Layout()


def read_t5(fields: Fields, has_own_head: bool) -> Json:
    """Reads all fields of both stacks; `has_own_head` says whether a head is stored."""
    is_tied = fields.take("tie_word_embeddings", bool, True)
    is_scaled = fields.take("scale_decoder_outputs", bool, is_tied)
    # transformers 5 takes every T5 as tied, unless the checkpoint stores a separate head.
    ties_head = not has_own_head or (is_tied and is_scaled)
    return read_stacks(fields, ties_head=ties_head, is_scaled=is_scaled)


def read_stacks(
    fields: Fields, usual: Mapping[str, Any] = USUAL, *, ties_head: bool, is_scaled: bool
) -> Json:
    """Reads all fields of both stacks, but for those of the head.

    Args:
        fields: the config file.
        usual: the defaults of the family's config class.
        ties_head: whether the head is tied.
        is_scaled: whether logits are scaled.
    """
    fields.require("is_decoder", False)
    width, heads = (
        fields.take("d_model", int, 512),
        fields.take("num_heads", int, usual["num_heads"]),
    )
    buckets = RelativeBuckets(
        count=fields.take("relative_attention_num_buckets", int, 32),
        max_distance=fields.take("relative_attention_max_distance", int, 128),
    )
    both = {
        "embed_dim": width,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": fields.take("d_kv", int, 64),
        "mlp_dim": fields.take("d_ff", int, usual["d_ff"]),
        "max_len": fields.take("n_positions", int, 512),
        "norms.eps": fields.take("layer_norm_epsilon", float, 1e-6),
        "positions.kind": "relative",
        "positions.relative": buckets,
        "attention.scale": 1.0,
        "numerics.wide_residual": True,  # transformers keeps `wo` in float32, and so its sums
        **_read_feed_forward(fields, usual["feed_forward_proj"]),
    }
    layers = fields.take("num_layers", int, usual["num_layers"])
    decoder = {
        "num_layers": fields.take("num_decoder_layers", int, layers),
        "attention.cross": True,
        "vocab_size": fields.take("vocab_size", int, usual["vocab_size"]),
        "head.scale": max(width, 1) ** -0.5 if is_scaled else 1.0,
        "head.tied": ties_head,
    }
    start = fields.take("decoder_start_token_id", int, fields.take("pad_token_id", int, 0))
    return {
        "encoder": {**both, "num_layers": layers, "attention.causal": False},
        "decoder": {**both, **decoder},
        "start_token": start,
    }


def _read_feed_forward(fields: Fields, usual: str) -> Json:
    """Reads activation and gating: "relu", or "gated-gelu", which means the tanh approximation."""
    given = fields.take("feed_forward_proj", str, usual)
    name = "gelu_new" if given == "gated-gelu" else given.removeprefix("gated-")
    if name not in ACTIVATIONS:
        fields.problems.append(f"feed_forward_proj={given!r} is not supported")
        name = "relu"
    return {
        "mlp.activation": read_activation(fields, "dense_act_fn", name),
        "mlp.gated": fields.take("is_gated_act", bool, given.startswith("gated-")),
    }


def write_config(config: EncoderDecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support.

    If the head is tied and logits are not scaled, or the reverse, only transformers 5 can read it.
    """
    scale = config.decoder.embed_dim**-0.5
    return {
        **write_stacks(config, base, "t5", "T5ForConditionalGeneration", scales=(1.0, scale)),
        "scale_decoder_outputs": config.decoder.head.scale != 1.0,
    }


def write_stacks(
    config: EncoderDecoderConfig,
    base: Json,
    model_type: str,
    architecture: str,
    scales: Collection[float],
) -> Json:
    """Writes the fields of `read_stacks`; refuses factors of logits that are not in `scales`."""
    encoder, decoder = config.encoder, config.decoder
    refuse_both(
        f"model_type {model_type!r}",
        config,
        *("positions.kind", "positions.relative", "attention.scale"),
        *("mlp.activation", "mlp.gated"),
        decoder=("head.tied", "head.scale"),
        may_differ=("num_layers",),
        unsupported={
            f"positions.kind={encoder.positions.kind!r}": encoder.positions.kind != "relative",
            f"attention.scale={encoder.attention.scale}": encoder.attention.scale != 1.0,
            f"num_kv_heads={encoder.num_kv_heads}": encoder.num_kv_heads != encoder.num_heads,
            f"head.scale={decoder.head.scale}": decoder.head.scale not in scales,
            f"source_vocab_size={config.source_vocab_size}": config.source_vocab_size is not None,
        },
    )
    return {
        "architectures": [architecture],
        "pad_token_id": 0,
        **{name: value for name, value in base.items() if name != "dtype"},
        "is_encoder_decoder": True,
        "vocab_size": decoder.vocab_size,
        **write_encoder(encoder),
        "model_type": model_type,
        "num_decoder_layers": decoder.num_layers,
        "tie_word_embeddings": decoder.head.tied,
        "decoder_start_token_id": config.start_token,
        "torch_dtype": decoder.numerics.param_dtype,
    }


def write_encoder(encoder: StackConfig) -> Json:
    """Writes the fields of the encoder."""
    buckets = encoder.positions.relative
    assert buckets is not None, "since positions are relative"
    return {
        "model_type": "t5",
        "d_model": encoder.embed_dim,
        "d_kv": encoder.head_dim,
        "d_ff": encoder.mlp_dim,
        "num_layers": encoder.num_layers,
        "num_heads": encoder.num_heads,
        "n_positions": encoder.max_len,
        "relative_attention_num_buckets": buckets.count,
        "relative_attention_max_distance": buckets.max_distance,
        "layer_norm_epsilon": encoder.norms.eps,
        **_write_feed_forward(encoder),
    }


def _write_feed_forward(config: StackConfig) -> Json:
    name = "gelu_new" if config.mlp.activation == "gelu_tanh" else config.mlp.activation
    gated = "gated-gelu" if name == "gelu_new" else f"gated-{name}"
    return {
        "feed_forward_proj": gated if config.mlp.gated else name,
        "dense_act_fn": name,
        "is_gated_act": config.mlp.gated,
    }


def table(config: EncoderDecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor of T5."""
    encoder, decoder = config.encoder, config.decoder
    buckets = encoder.positions.relative
    rules = [
        Rule("shared.weight : V D", "decoder.embed.embedding : V D"),
        *stack_rules("encoder", encoder),
        *stack_rules("decoder", decoder),
    ]
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    if decoder.head.tied:
        copies.append(HEAD)
    else:
        rules += linear_rules("lm_head", "decoder.lm_head", "V", "D")
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    return RuleTable(
        tuple(rules),
        {
            "L_encoder": encoder.num_layers,
            "L_decoder": decoder.num_layers,
            "V": decoder.vocab_size,
            "D": encoder.embed_dim,
            "N": encoder.num_heads,
            "H": encoder.head_dim,
            "F": encoder.mlp_dim,
            "U": 0 if buckets is None else buckets.count,
        },
        tied=dict.fromkeys(copies, "shared.weight"),
        ignored={unused: "no model uses it"},
    )


def stack_rules(stack: str, config: StackConfig, prefix: str | None = None) -> list[Rule]:
    """Rules for the stack of this name, whose names in the model begin with `prefix`."""
    L, own = f"{{L_{stack}}}", f"{stack}." if prefix is None else prefix
    theirs, ours = f"{stack}.block.{L}.layer.", f"{own}layers.{L}."
    last = 2 if config.attention.cross else 1
    ffn = f"{theirs}{last}.DenseReluDense."
    rules = [
        *attention_rules(theirs + "0.SelfAttention", ours + "attn", NAMES),
        _norm_rule(theirs + "0.layer_norm", ours + "attn_norm"),
        *linear_rules(ffn + "wo", ours + "mlp.down_proj", "D", "F"),
        _norm_rule(f"{theirs}{last}.layer_norm", ours + "mlp_norm"),
        _norm_rule(f"{stack}.final_layer_norm", f"{own}final_norm"),
        Rule(
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight : U N",
            f"{own}position_bias.embedding : U N",
        ),
    ]
    if config.attention.cross:
        rules += attention_rules(theirs + "1.EncDecAttention", ours + "cross_attn", NAMES)
        rules.append(_norm_rule(theirs + "1.layer_norm", ours + "cross_norm"))
    if config.mlp.gated:
        rules += linear_rules(ffn + "wi_0", ours + "mlp.gate_proj", "F", "D")
        rules += linear_rules(ffn + "wi_1", ours + "mlp.up_proj", "F", "D")
    else:
        rules += linear_rules(ffn + "wi", ours + "mlp.up_proj", "F", "D")
    return rules


def _norm_rule(theirs: str, ours: str) -> Rule:
    return Rule(f"{theirs}.weight : D", f"{ours}.scale : D")


def is_encoder_alone(names: Collection[str]) -> bool:
    """Whether tensors of these names include no decoder."""
    parts = {part for name in names for part in name.split(".")}
    return "encoder" in parts and "decoder" not in parts


T5 = hf_family(
    "t5",
    read_config,
    write_config,
    table,
    EncoderDecoderConfig,
    prefix="",
    embeddings=EMBEDDINGS,
    applies=lambda names: not is_encoder_alone(names),
)
