"""Config fields and tensor rules of BART and the families that are named like it."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jaxllm.config import EncoderDecoderConfig, StackConfig
from jaxllm.interop.families.common.encoder_decoder import refuse_both
from jaxllm.interop.families.common.family import Derived, Family, Layout, RuleTable
from jaxllm.interop.families.common.fields import Fields, Json
from jaxllm.interop.families.common.llama_like import (
    layer_norm_rules,
    read_activation,
    write_activation,
)
from jaxllm.interop.families.common.naming.hf_family import hf_family
from jaxllm.interop.families.common.torch_modules import (
    attention_rules,
    half_and_half,
    linear_rules,
)
from jaxllm.interop.families.common.unsupported import unsupported_values
from jaxllm.interop.formats.stored_tensor import StoredTensor
from jaxllm.interop.rules.rule import Rule

NAMES = ("q_proj", "k_proj", "v_proj", "out_proj")
PREFIX, EMBEDDINGS = "model.", ("shared.weight", "encoder.embed_tokens.weight")
LOGITS_BIAS = "final_logits_bias"
POSITIONS = "embed_positions.weight"
# Settings of both stacks of every such model.
COMMON: Json = {
    "norms.kind": "layer",
    "norms.eps": 1e-5,
    "attention.qkv_bias": True,
    "attention.out_bias": True,
    "mlp.bias": True,
    "mlp.gated": False,
}
# Whether a checkpoint stores sinusoids, as names in its layout.
STORED, NOT_STORED = "sinusoids", "no sinusoids"


@dataclasses.dataclass(frozen=True)
class BartLike:
    """A family whose fields and tensors are named like BART's.

    Attributes:
        model_type: see `Family`.
        architecture: the class of transformers.
        fixed: the settings of both stacks besides `COMMON`.
        activation: the default of the activation.
        is_scaled: the default of whether embeddings are scaled by the root of their width.
        start_token: the default of the token that targets begin with.
        stores_sinusoids: whether files hold sinusoids.
        scales_after: whether transformers scales embeddings outside of their module.
        counts_from_padding: whether the first position is the one after the padding token's id.
        target_vocab: the name of a second vocabulary's size, which must be that of the first.
        only: the fields of which only some values are implemented, with those values.
        with_head: see `hf_family`.
    """

    model_type: str
    architecture: str
    fixed: Mapping[str, Any]
    activation: str = "gelu"
    is_scaled: bool = False
    start_token: int | None = None
    stores_sinusoids: bool = False
    scales_after: bool = False
    counts_from_padding: bool = False
    target_vocab: str = ""
    only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    with_head: Collection[str] = ()

    @property
    def settings(self) -> Json:
        """The settings of both stacks."""
        return {**COMMON, **self.fixed}

    def family(self) -> Family:
        """Returns the family."""
        return hf_family(
            self.model_type,
            self.read_config,
            self.write_config,
            self.table,
            EncoderDecoderConfig,
            prefix=PREFIX,
            embeddings=EMBEDDINGS,
            with_head=self.with_head,
        )

    def read_config(
        self, fields: Fields, stored: Mapping[str, StoredTensor]
    ) -> tuple[Json, Layout]:
        """Reads a `config.json` as transformers 4 or 5 writes it."""
        fields.require("is_encoder_decoder", True)
        for name, allowed in self.only.items():
            fields.require(name, *allowed)
        if self.target_vocab:
            fields.require(self.target_vocab, None, fields.take("vocab_size", int, 50265))
        width = fields.take("d_model", int, 1024)
        is_scaled = fields.take("scale_embedding", bool, self.is_scaled)
        both = {
            **self.settings,
            "embed_dim": width,
            "max_len": fields.take("max_position_embeddings", int, 1024),
            "mlp.activation": read_activation(fields, "activation_function", self.activation),
            "embed_scale": math.sqrt(width) if is_scaled else 1.0,
            "init.std": fields.take("init_std", float, 0.02),
        }
        if self.counts_from_padding:
            both["positions.offset"] = fields.take("pad_token_id", int, 1) + 1
        decoder = {
            "attention.cross": True,
            "vocab_size": fields.take("vocab_size", int, 50265),
            "head.tied": fields.take("tie_word_embeddings", bool, True),
            "head.bias": LOGITS_BIAS in stored,
        }
        config = {
            "encoder": {**both, **_read_sizes(fields, "encoder", width), "attention.causal": False},
            "decoder": {**both, **_read_sizes(fields, "decoder", width), **decoder},
            "start_token": fields.take_nullable("decoder_start_token_id", int, self.start_token),
        }
        return config, self.read_layout(stored)

    def read_layout(self, stored: Collection[str]) -> Layout:
        """Detects whether sinusoids are stored, in files or in a module's state dict."""
        found = any(name.endswith(POSITIONS) for name in stored)
        is_usual = found == self.stores_sinusoids or self.fixed["positions.kind"] == "learned"
        return Layout() if is_usual else Layout(names=(STORED if found else NOT_STORED,))

    def write_config(self, config: EncoderDecoderConfig, base: Json) -> Json:
        """Writes a `config.json`. Raises ValueError for what the format does not support."""
        decoder, width = config.decoder, config.decoder.embed_dim
        own = ("positions.offset",) if self.counts_from_padding else ()
        refuse_both(
            f"model_type {self.model_type!r}",
            config,
            *(*self.settings, *own, "mlp.activation", "embed_scale"),
            decoder=("head.tied", "head.bias"),
            may_differ=("num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"),
            unsupported=self.unsupported(config),
        )
        offset = decoder.positions.offset
        return {
            "architectures": [self.architecture],
            "pad_token_id": None,  # the class's default may lie outside the vocabulary
            **{name: value for name, value in base.items() if name != "dtype"},
            **({"pad_token_id": offset - 1} if self.counts_from_padding else {}),
            **({self.target_vocab: decoder.vocab_size} if self.target_vocab else {}),
            "model_type": self.model_type,
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

    def unsupported(self, config: EncoderDecoderConfig) -> dict[str, bool]:
        """Flags what the format does not support."""
        stacks = {"encoder": config.encoder, "decoder": config.decoder}
        decoder, width = config.decoder, config.decoder.embed_dim
        differing = {
            f"{value} in the {role}": is_differing
            for role, stack in stacks.items()
            for value, is_differing in unsupported_values(stack, self.settings).items()
        }
        heads = {
            f"num_heads={stack.num_heads} with head_dim={stack.head_dim} and "
            f"num_kv_heads={stack.num_kv_heads}": (
                stack.num_kv_heads != stack.num_heads or stack.num_heads * stack.head_dim != width
            )
            for stack in stacks.values()
        }
        offset = decoder.positions.offset
        return {
            **differing,
            **heads,
            f"embed_scale={decoder.embed_scale}": (
                decoder.embed_scale not in (1.0, math.sqrt(width))
            ),
            f"source_vocab_size={config.source_vocab_size}": config.source_vocab_size is not None,
            f"positions.offset={offset}": self.counts_from_padding and offset < 1,
        }

    def table(self, config: EncoderDecoderConfig, layout: Layout) -> RuleTable:
        """Returns the rules for every tensor."""
        encoder, decoder = config.encoder, config.decoder
        shared = PREFIX + EMBEDDINGS[0]
        rules = [
            Rule(f"{shared} : V D", "decoder.embed.embedding : V D"),
            *_stack_rules(PREFIX, "encoder", encoder),
            *_stack_rules(PREFIX, "decoder", decoder),
        ]
        if decoder.head.bias:
            rules.append(Rule(f"{LOGITS_BIAS} : O V", "decoder.head_bias : (O V)"))
        copies = [f"{PREFIX}{stack}.embed_tokens.weight" for stack in ("encoder", "decoder")]
        if decoder.head.tied:
            copies.append("lm_head.weight")
        else:
            rules += linear_rules("lm_head", "decoder.lm_head", "V", "D")
        return RuleTable(
            tuple(rules),
            _sizes(config),
            tied=dict.fromkeys(copies, shared),
            unlike={"model.shared": "it is scaled afterwards"} if self.scales_after else {},
            **self._sinusoids(config, layout),
        )

    def _sinusoids(self, config: EncoderDecoderConfig, layout: Layout) -> dict[str, Any]:
        """Returns how a table treats sinusoids, which are no part of the model."""
        if self.fixed["positions.kind"] == "learned":
            return {}
        are_stored = self.stores_sinusoids or STORED in layout.names
        if not are_stored or NOT_STORED in layout.names:
            return {"ignored": {"*.embed_positions.weight*": "derived from the config"}}

        def compute(stack: StackConfig) -> np.ndarray:
            found = half_and_half(stack.max_len, stack.embed_dim)
            return found.astype(np.dtype(stack.numerics.param_dtype))

        stacks = {"encoder": config.encoder, "decoder": config.decoder}
        return {
            "derived": tuple(
                Derived(f"{PREFIX}{name}.{POSITIONS}", lambda stack=stack: compute(stack))
                for name, stack in stacks.items()
            )
        }


def _read_sizes(fields: Fields, stack: str, width: int) -> Json:
    heads = fields.take(f"{stack}_attention_heads", int, 16)
    return {
        "num_layers": fields.take(f"{stack}_layers", int, 12),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // max(heads, 1),
        "mlp_dim": fields.take(f"{stack}_ffn_dim", int, 4096),
    }


def _write_sizes(stack: str, config: StackConfig) -> Json:
    return {
        f"{stack}_layers": config.num_layers,
        f"{stack}_attention_heads": config.num_heads,
        f"{stack}_ffn_dim": config.mlp_dim,
    }


def _sizes(config: EncoderDecoderConfig) -> dict[str, int]:
    """Returns the sizes of the axes, which each stack has its own of."""
    sizes = {"V": config.decoder.vocab_size, "D": config.decoder.embed_dim, "O": 1}
    for name, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        sizes |= {
            f"L_{name}": stack.num_layers,
            f"P_{name}": stack.positions.offset + stack.max_len,
            f"N_{name}": stack.num_heads,
            f"H_{name}": stack.head_dim,
            f"F_{name}": stack.mlp_dim,
        }
    return sizes


def _stack_rules(prefix: str, stack: str, config: StackConfig) -> list[Rule]:
    """Rules for the stack of this name, which has its own sizes."""
    L = f"{{L_{stack}}}"
    theirs, ours = f"{prefix}{stack}.layers.{L}.", f"{stack}.layers.{L}."
    heads, F = f"(N_{stack} H_{stack})", f"F_{stack}"
    rules = [
        *attention_rules(theirs + "self_attn", ours + "attn", NAMES, heads=heads, bias=True),
        *layer_norm_rules(theirs + "self_attn_layer_norm", ours + "attn_norm"),
        *linear_rules(theirs + "fc1", ours + "mlp.up_proj", F, "D", bias=True),
        *linear_rules(theirs + "fc2", ours + "mlp.down_proj", "D", F, bias=True),
        *layer_norm_rules(theirs + "final_layer_norm", ours + "mlp_norm"),
    ]
    if config.positions.kind == "learned":
        positions = f"{stack}.embed_position.embedding"
        rules.append(
            Rule(f"{prefix}{stack}.{POSITIONS} : P_{stack} D", f"{positions} : P_{stack} D")
        )
    if config.norms.embed:
        rules += layer_norm_rules(f"{prefix}{stack}.layernorm_embedding", f"{stack}.embed_norm")
    if config.norms.final:
        rules += layer_norm_rules(f"{prefix}{stack}.layer_norm", f"{stack}.final_norm")
    if config.attention.cross:
        cross = theirs + "encoder_attn", ours + "cross_attn"
        rules += attention_rules(*cross, NAMES, heads=heads, bias=True)
        rules += layer_norm_rules(theirs + "encoder_attn_layer_norm", ours + "cross_norm")
    return rules
