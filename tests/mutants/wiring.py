"""Mutations of layers: a layer differs from the model's config, which only a forward pass shows."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxllm.config import DecoderConfig, StackConfig, with_fields
from jaxllm.layers.block import Block
from jaxllm.models.decoder import Decoder

from .features import (
    Feature,
    Layer,
    always,
    first_layer,
    first_unrotated,
    has,
    is_rms,
    last,
    last_experts,
    last_rotated,
)
from .mutation import Mutation, copy_of

Change = Callable[[Block], None]


def wired(
    name: str, layer: Layer, change: Change, place: str, applies: Feature = always
) -> Mutation:
    """Changes one layer; `place` is the first wrong activation in it."""

    def rewire(model: Decoder) -> Decoder:
        model = copy_of(model)
        change(model.layers[str(layer(model.config))])
        return model

    return Mutation(
        name=name,
        applies=lambda config: applies(config) and layer(config) >= 0,
        break_model=rewire,
        signs=lambda config: {"layers": f"layers.{layer(config)}.{place}"},
    )


def attention_with(field: str, value: Callable[[StackConfig], Any]) -> Change:
    """Changes a field, by its dotted name, of the config of a layer's attention."""

    def change(block: Block) -> None:
        config = block.attn.config
        block.attn.config = with_fields(config, {field: value(config)})

    return change


def eps_x_10(block: Block) -> None:
    block.attn_norm.eps *= 10


def plus_one(block: Block) -> None:
    """Adds one to the scale of a norm, or stops adding it."""
    is_added = block.mlp_norm.kind == "rms_plus_one"
    block.mlp_norm.kind = "rms_float32" if is_added else "rms_plus_one"


def softmax_of_others(block: Block) -> None:
    """Takes expert weights from the softmax over all experts instead of the selected ones.

    Does the reverse if the model already uses all; replaces sigmoid scores by the softmax of all.
    """
    experts = block.mlp.experts
    is_softmax = experts.scores == "softmax"
    block.mlp.experts = dataclasses.replace(
        experts, scores="softmax", normalize=is_softmax and not experts.normalize
    )


def one_expert_more(block: Block) -> None:
    experts = block.mlp.experts
    block.mlp.experts = dataclasses.replace(experts, top_k=experts.top_k + 1)


def other_gelu(block: Block) -> None:
    is_exact = block.mlp.config.activation == "gelu"
    other = "gelu_tanh" if is_exact else "gelu"
    block.mlp.config = dataclasses.replace(block.mlp.config, activation=other)


def rope_moved(model: Decoder) -> Decoder:
    """Gives each layer the RoPE, or lack of RoPE, of the next layer."""
    model = copy_of(model)
    kinds = model.config.kinds
    for i, kind in enumerate((*kinds[1:], kinds[0])):
        attn = model.layers[str(i)].attn
        attn.kind = dataclasses.replace(attn.kind, rope=kind.rope)
    return model


def unscaled(model: Decoder) -> Decoder:
    model = copy_of(model)
    model.embed.scale = 1.0
    return model


def is_whole(config: DecoderConfig) -> bool:
    return config.rope.fraction == 1


def is_partial(config: DecoderConfig) -> bool:
    return config.rope.fraction < 1


def is_gelu(config: DecoderConfig) -> bool:
    return config.mlp.activation.startswith("gelu")


SCORES, ROTATED = "attn.scores", "attn.q"
final, last_window, last_chunk = last(), last(attention="window"), last(attention="chunk")
width = attention_with("attention.scale", lambda config: config.embed_dim**-0.5)
WIRING = (
    wired("theta x 1.02", last_rotated,
          attention_with("rope.theta", lambda c: 1.02 * c.rope.theta), ROTATED),
    wired("rope scaling missing", last_rotated, attention_with("rope.scaling", lambda c: None),
          ROTATED, has("rope.scaling")),
    wired("partial rotary of a whole head", last_rotated,
          attention_with("rope.fraction", lambda c: 0.5), ROTATED, is_whole),
    wired("partial rotary ignored", last(rope="global"),
          attention_with("rope.fraction", lambda c: 1.0), ROTATED, is_partial),
    # In the first layer, where the residual stream is smallest: later, eps is below rounding.
    wired("eps x 10", first_layer, eps_x_10, "attn_norm"),
    wired("norm +1", final, plus_one, "mlp_norm", is_rms),
    wired("head_dim scale by the model's width", final, width, SCORES),
    wired("scores uncapped", final, attention_with("attention.softcap", lambda c: None), SCORES,
          has("attention.softcap")),
    wired("window off by one", last_window,
          attention_with("attention.window", lambda c: c.attention.window + 1), SCORES),
    wired("chunk mask off by one", last_chunk,
          attention_with("attention.chunk", lambda c: c.attention.chunk + 1), SCORES),
    wired("router softmax before top-k", last_experts, softmax_of_others, "mlp"),
    wired("one expert more", last_experts, one_expert_more, "mlp"),
    wired("the other gelu", final, other_gelu, "mlp.down_proj", is_gelu),
    Mutation(
        name="NoPE off by one",
        applies=lambda config: first_unrotated(config) > 0,
        break_model=rope_moved,
        signs=lambda config: {"layers": f"layers.{first_unrotated(config) - 1}.{ROTATED}"},
    ),
    Mutation(
        name="embedding unscaled",
        applies=lambda config: config.embed_scale != 1,
        break_model=unscaled,
        signs=lambda config: {"layers": "embed"},
    ),
)  # fmt: skip
