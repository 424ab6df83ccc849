"""Mutations of functions: jaxllm computes something else with the right weights and config."""

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from jaxllm.config import DecoderConfig
from jaxllm.layers.attention import attention
from jaxllm.layers.attention.attention import Attention
from jaxllm.layers.block import Block
from jaxllm.layers.experts.moe import MoE
from jaxllm.layers.linear import Linear
from jaxllm.layers.mlp import MLP, activate
from jaxllm.models.decoder import Decoder

from .features import (
    Feature,
    always,
    both,
    can_pad_left,
    first,
    first_unrotated,
    has,
    has_not,
    is_gated,
    is_grouped,
    is_rotated,
    starts_with_norm,
)
from .mutation import Mutation, copy_of, left_padded

Wrong = Callable[[Callable, DecoderConfig], Callable]


def patched(
    name: str,
    owner: Any,
    attribute: str,
    wrong: Wrong,
    place: Callable[[DecoderConfig], str] | str,
    applies: Feature = always,
    level: str = "layers",
) -> Mutation:
    """Replaces a function of `owner` by `wrong(function, config)`."""
    original = getattr(owner, attribute)
    return Mutation(
        name=name,
        applies=applies,
        patch=lambda config: mock.patch.object(owner, attribute, wrong(original, config)),
        signs=lambda config: {level: place if isinstance(place, str) else place(config)},
    )


def other_norm(original: Callable, config: DecoderConfig) -> Callable:
    def pre_norm(self, norm, x_BTD):
        return original(self, self.mlp_norm if norm is self.attn_norm else self.attn_norm, x_BTD)

    return pre_norm


def up_as_gate(original: Callable, config: DecoderConfig) -> Callable:
    def call(self, x_BTD):
        gate_BTF, up_BTF = self.gate_proj(x_BTD), self.up_proj(x_BTD)
        return self.down_proj(activate(self.config.activation, up_BTF) * gate_BTF)

    return call


def rotated_otherwise(heads: str) -> Wrong:
    """Uses the other RoPE layout for queries or keys: those with this config field's heads."""

    def wrong(original: Callable, config: DecoderConfig) -> Callable:
        other = "interleaved" if config.rope.layout == "half" else "half"

        def apply_rope(x_BTNH, positions_BT, rotation):
            is_affected = x_BTNH.shape[2] == getattr(config, heads)
            return original(
                x_BTNH, positions_BT, rotation._replace(layout=other) if is_affected else rotation
            )

        return apply_rope

    return wrong


def without_qk_norm(original: Callable, config: DecoderConfig) -> Callable:
    def normalize_and_rotate(self, x_BTNH, norm, positions_BT):
        return original(self, x_BTNH, None, positions_BT)

    return normalize_and_rotate


def identity(original: Callable, config: DecoderConfig) -> Callable:
    return lambda x, *args: x


def tiled(original: Callable, config: DecoderConfig) -> Callable:
    """Query head n uses key/value head n % K instead of n // G."""
    groups = config.num_heads // config.num_kv_heads

    def attend(q_BTNH, *args, **options):
        B, T, N, H = q_BTNH.shape
        moved = q_BTNH.reshape(B, T, groups, -1, H).swapaxes(2, 3).reshape(B, T, N, H)
        out = original(moved, *args, **options)
        return out.reshape(B, T, -1, groups, H).swapaxes(2, 3).reshape(B, T, N, H)

    return attend


def in_half_precision(original: Callable, config: DecoderConfig) -> Callable:
    def softmax(x, axis=-1, **options):
        return original(x.astype(jnp.bfloat16), axis=axis, **options).astype(x.dtype)

    return softmax


def without_last_expert(original: Callable, config: DecoderConfig) -> Callable:
    """Drops the output of the last expert."""

    def choose(self, x_BTD):
        probs_BTE, weights_BTk, chosen_BTk = original(self, x_BTD)
        is_lost_BTk = chosen_BTk == self.experts.num_experts - 1
        return probs_BTE, jnp.where(is_lost_BTk, 0, weights_BTk), chosen_BTk

    return choose


def early_temperature(original: Callable, config: DecoderConfig) -> Callable:
    """Computes the temperature of position p from p instead of p + 1."""
    return lambda temperature, positions_BT: original(temperature, positions_BT - 1)


def unbiased(original: Callable, config: DecoderConfig) -> Callable:
    """Drops the bias of the output projection of attention."""

    def finish(self, product, x):
        if self.equation == "BTNH,NHD->BTD":
            product = product - self.bias[...]
        return original(self, product, x)

    return finish


def by_embeddings(original: Callable, config: DecoderConfig) -> Callable:
    return lambda self, x_BTD: self.embed.attend(x_BTD)


def counting_tokens(original: Callable, config: DecoderConfig) -> Callable:
    """Counts positions from the first token after left padding, unlike the reference."""

    def hidden(self, tokens_BT, context, cache=None, **options):
        is_token_BT = jnp.asarray(context.segment_ids_BT != 0, jnp.int32)
        positions_BT = jnp.maximum(jnp.cumsum(is_token_BT, axis=1) - 1, 0)
        context = context._replace(positions_BT=positions_BT)
        return original(self, tokens_BT, context, cache, **options)

    return hidden


def dropping(original: Callable, config: DecoderConfig) -> Callable:
    def hidden(self, tokens_BT, context, cache=None, **options):
        context = context._replace(dropout_key=jax.random.key(0))
        return original(self, tokens_BT, context, cache, **options)

    return hidden


def with_dropout(model: Decoder) -> Decoder:
    """Sets dropout in the config, which has no effect until a dropout key is given."""
    model = copy_of(model)
    model.config = dataclasses.replace(model.config, dropout=0.1)
    return model


def entry(config: DecoderConfig) -> str:
    """Returns the first activation of the first layer."""
    return f"layers.0.{'attn_norm' if starts_with_norm(config) else 'attn.q_proj'}"


def swapped_norm(config: DecoderConfig) -> str:
    """Parallel norms have the same input, so only the projection after them is wrong."""
    return "layers.0.attn.q_proj" if config.norms.placement == "parallel" else "layers.0.attn_norm"


def placed(config: DecoderConfig) -> str:
    """Returns the first activation that depends on the position."""
    return "layers.0.attn.q" if config.positions.kind == "rope" else entry(config)


def in_first(name: str, **kind: str) -> Callable[[DecoderConfig], str]:
    return lambda config: f"layers.{first(**kind)(config)}.{name}"


Q, K, SCORES, PROBS = (f"layers.0.attn.{name}" for name in ("q", "k", "scores", "probs"))
FUNCTIONS = (
    patched("norms swapped", Block, "pre_norm", other_norm, swapped_norm, starts_with_norm),
    patched("gate and up swapped", MLP, "__call__", up_as_gate,
            in_first("mlp.down_proj", mlp="dense"), is_gated),
    patched("rope layout of q only", attention, "apply_rope", rotated_otherwise("num_heads"), Q,
            both(is_rotated, is_grouped)),
    patched("rope layout of k only", attention, "apply_rope", rotated_otherwise("num_kv_heads"), K,
            both(is_rotated, is_grouped)),
    patched("qk norm missing", Attention, "normalize_and_rotate", without_qk_norm, Q,
            lambda config: config.attention.qk_norm in ("head", "full")),
    patched("qk norm missing", attention, "normalize", identity, Q,
            lambda config: config.attention.qk_norm == "after_rope"),
    patched("kv heads tiled", attention, "attention", tiled, SCORES, is_grouped),
    patched("softmax in bfloat16", jax.nn, "softmax", in_half_precision, PROBS),
    patched("last expert dropped", MoE, "route", without_last_expert,
            in_first("mlp", mlp="experts"), has("experts")),
    patched("temperature floor off by one", attention, "temperature_growth", early_temperature,
            lambda config: f"layers.{first_unrotated(config)}.attn.q",
            has("attention.temperature")),
    patched("bias dropped", Linear, "finish", unbiased, "layers.0.attn.o_proj",
            has("attention.out_bias")),
    patched("head tied", Decoder, "unembed", by_embeddings, "lm_head", has_not("head.tied"),
            "logits"),
    dataclasses.replace(
        patched("position under left padding", Decoder, "hidden", counting_tokens, placed,
                can_pad_left),
        inputs=left_padded,
    ),
    dataclasses.replace(
        patched("dropout left on", Decoder, "hidden", dropping, entry), break_model=with_dropout
    ),
)  # fmt: skip
