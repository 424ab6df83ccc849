"""BART in the Hugging Face format (`model_type: bart`): post-norm, biases everywhere."""

import math
from collections.abc import Mapping

from jaxllm.config import EncoderDecoderConfig, StackConfig
from jaxllm.interop.families.common.encoder_decoder import refuse_both
from jaxllm.interop.families.common.family import Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.llama_like import (
    layer_norm_rules,
    read_activation,
    write_activation,
)
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.torch_modules import attention_rules, linear_rules
from jaxllm.interop.families.common.unsupported import unsupported_values
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.rule import Rule

NAMES = ("q_proj", "k_proj", "v_proj", "out_proj")
PREFIX, EMBEDDINGS = "model.", ("shared.weight", "encoder.embed_tokens.weight")
LOGITS_BIAS = "final_logits_bias"
# Settings of every BART, in both stacks.
FIXED: Json = {
    "norms.kind": "layer",
    "norms.placement": "post",
    "norms.eps": 1e-5,
    "norms.embed": True,
    "norms.final": False,
    "positions.kind": "learned",
    "positions.offset": 2,
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.bias": True,
    "mlp.gated": False,
}


def read_config(fields: Fields, stored: Mapping[str, StoredTensor]) -> tuple[Json, Layout]:
    """Reads a `config.json` as transformers 4 or 5 writes it."""
    fields.require("is_encoder_decoder", True)
    width = fields.take("d_model", int, 1024)
    both = {
        **FIXED,
        "embed_dim": width,
        "max_len": fields.take("max_position_embeddings", int, 1024),
        "mlp.activation": read_activation(fields, "activation_function", "gelu"),
        "embed_scale": math.sqrt(width) if fields.take("scale_embedding", bool, False) else 1.0,
        "init.std": fields.take("init_std", float, 0.02),
    }
    decoder = {
        "attention.cross": True,
        "vocab_size": fields.take("vocab_size", int, 50265),
        "head.tied": fields.take("tie_word_embeddings", bool, True),
        "head.bias": LOGITS_BIAS in stored,
    }
    config = {
        "encoder": {**both, **_read_sizes(fields, "encoder", width), "attention.causal": False},
        "decoder": {**both, **_read_sizes(fields, "decoder", width), **decoder},
        "start_token": fields.take("decoder_start_token_id", int, 2),
    }
    return config, Layout()


def _read_sizes(fields: Fields, stack: str, width: int) -> Json:
    heads = fields.take(f"{stack}_attention_heads", int, 16)
    return {
        "num_layers": fields.take(f"{stack}_layers", int, 12),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // max(heads, 1),
        "mlp_dim": fields.take(f"{stack}_ffn_dim", int, 4096),
    }


def write_config(config: EncoderDecoderConfig, base: Json) -> Json:
    """Writes a `config.json`. Raises ValueError for what the format does not support."""
    stacks = {"encoder": config.encoder, "decoder": config.decoder}
    decoder, width = config.decoder, config.decoder.embed_dim
    scale = math.sqrt(width)
    differing = {
        f"{value} in the {role}": is_differing
        for role, stack in stacks.items()
        for value, is_differing in unsupported_values(stack, FIXED).items()
    }
    heads = {
        f"num_heads={stack.num_heads} with head_dim={stack.head_dim} and "
        f"num_kv_heads={stack.num_kv_heads}": (
            stack.num_kv_heads != stack.num_heads or stack.num_heads * stack.head_dim != width
        )
        for stack in stacks.values()
    }
    refuse_both(
        "model_type 'bart'",
        config,
        *(*FIXED, "mlp.activation", "embed_scale"),
        decoder=("head.tied", "head.bias"),
        may_differ=("num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"),
        unsupported={
            **differing,
            **heads,
            f"embed_scale={decoder.embed_scale}": decoder.embed_scale not in (1.0, scale),
            f"source_vocab_size={config.source_vocab_size}": config.source_vocab_size is not None,
        },
    )
    return {
        "architectures": ["BartForConditionalGeneration"],
        "pad_token_id": None,  # the class's default may lie outside the vocabulary
        **{name: value for name, value in base.items() if name != "dtype"},
        "model_type": "bart",
        "is_encoder_decoder": True,
        "vocab_size": decoder.vocab_size,
        "d_model": width,
        "max_position_embeddings": decoder.max_len,
        **_write_sizes("encoder", config.encoder),
        **_write_sizes("decoder", config.decoder),
        **write_activation(decoder, "activation_function", base),
        "scale_embedding": decoder.embed_scale != 1.0,
        "init_std": decoder.init.std,
        "decoder_start_token_id": config.start_token,
        "tie_word_embeddings": True,  # also of the stacks' embeddings, which are always tied
        "torch_dtype": decoder.numerics.param_dtype,
    }


def _write_sizes(stack: str, config: StackConfig) -> Json:
    return {
        f"{stack}_layers": config.num_layers,
        f"{stack}_attention_heads": config.num_heads,
        f"{stack}_ffn_dim": config.mlp_dim,
    }


def table(config: EncoderDecoderConfig, layout: Layout) -> RuleTable:
    """Returns the rules for every tensor of BART."""
    encoder, decoder = config.encoder, config.decoder
    prefix, shared = PREFIX, PREFIX + EMBEDDINGS[0]
    rules = [
        Rule(f"{shared} : V D", "decoder.embed.embedding : V D"),
        *_stack_rules(prefix, "encoder", encoder),
        *_stack_rules(prefix, "decoder", decoder),
    ]
    if decoder.head.bias:
        rules.append(Rule(f"{LOGITS_BIAS} : O V", "decoder.head_bias : (O V)"))
    sizes = {"V": decoder.vocab_size, "D": decoder.embed_dim, "O": 1}
    for name, stack in (("encoder", encoder), ("decoder", decoder)):
        sizes |= {
            f"L_{name}": stack.num_layers,
            f"P_{name}": stack.positions.offset + stack.max_len,
            f"N_{name}": stack.num_heads,
            f"H_{name}": stack.head_dim,
            f"F_{name}": stack.mlp_dim,
        }
    copies = [f"{prefix}{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")]
    if decoder.head.tied:
        copies.append("lm_head.weight")
    else:
        rules += linear_rules("lm_head", "decoder.lm_head", "V", "D")
    return RuleTable(tuple(rules), sizes, tied=dict.fromkeys(copies, shared))


def _stack_rules(prefix: str, stack: str, config: StackConfig) -> list[Rule]:
    """Rules for the stack of this name, which has its own sizes."""
    L = f"{{L_{stack}}}"
    theirs, ours = f"{prefix}{stack}.layers.{L}.", f"{stack}.layers.{L}."
    heads, F = f"(N_{stack} H_{stack})", f"F_{stack}"
    rules = [
        Rule(
            f"{prefix}{stack}.embed_positions.weight : P_{stack} D",
            f"{stack}.embed_position.embedding : P_{stack} D",
        ),
        *layer_norm_rules(f"{prefix}{stack}.layernorm_embedding", f"{stack}.embed_norm"),
        *attention_rules(theirs + "self_attn", ours + "attn", NAMES, heads=heads, bias=True),
        *layer_norm_rules(theirs + "self_attn_layer_norm", ours + "attn_norm"),
        *linear_rules(theirs + "fc1", ours + "mlp.up_proj", F, "D", bias=True),
        *linear_rules(theirs + "fc2", ours + "mlp.down_proj", "D", F, bias=True),
        *layer_norm_rules(theirs + "final_layer_norm", ours + "mlp_norm"),
    ]
    if config.attention.cross:
        cross = theirs + "encoder_attn", ours + "cross_attn"
        rules += attention_rules(*cross, NAMES, heads=heads, bias=True)
        rules += layer_norm_rules(theirs + "encoder_attn_layer_norm", ours + "cross_norm")
    return rules


BART = hf_family(
    "bart",
    read_config,
    write_config,
    table,
    EncoderDecoderConfig,
    prefix=PREFIX,
    embeddings=EMBEDDINGS,
    with_head=("BartModel",),  # so the released bart-base and bart-large are named
)
