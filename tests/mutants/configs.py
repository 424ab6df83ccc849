"""Mutations of the config: one field has another value than the reference's."""

from collections.abc import Callable
from typing import Any

from jaxllm.config import DecoderConfig, with_fields
from jaxllm.models import build_abstract
from jaxllm.models.decoder import Decoder
from jaxllm.params import with_arrays

from .features import Feature, first, has, has_not, is_rotated, starts_with_norm
from .mutation import Mutation, Signs, arrays_of


def configured(
    name: str,
    field: str,
    value: Callable[[DecoderConfig], Any],
    place: Callable[[DecoderConfig], str],
    applies: Feature,
    level: str = "layers",
) -> Mutation:
    """Sets a field to another value. The config level names it.

    `place` is the first wrong activation.
    """

    def configure(model: Decoder) -> Decoder:
        config = with_fields(model.config, {field: value(model.config)})
        arrays = arrays_of(model)
        if config.head.tied:
            arrays.pop("lm_head.kernel", None)
        elif model.config.head.tied:  # a head that is no longer equal to the embeddings
            arrays["lm_head.kernel"] = 1.01 * arrays["embed.embedding"].T
        return with_arrays(build_abstract(config), arrays)

    return Mutation(
        name=f"{name}, in the config",
        applies=applies,
        break_model=configure,
        signs=lambda config: {"config": f"config.{field}", level: place(config)},
    )


def relabelled(model: Decoder) -> Decoder:
    """Declares the other RoPE layout without reordering the weights."""
    other = "interleaved" if model.config.rope.layout == "half" else "half"
    config = with_fields(model.config, {"rope.layout": other})
    return with_arrays(build_abstract(config), arrays_of(model))


def misplaced(config: DecoderConfig) -> Signs:
    """The rules follow the layout, so weights differ too, except where heads rotate partially."""
    if config.rope.fraction < 1:
        return {"layers": "layers.0.attn.q"}
    both = ("layers.0.attn.q_proj", "layers.0.attn.k_proj")
    return {"weights": both, "layers": "layers.0.attn.q_proj"}


CONFIGS = (
    Mutation(
        name="rope layout, in the config",
        applies=is_rotated,
        break_model=relabelled,
        signs=misplaced,
    ),
    configured(
        *("eps x 10", "norms.eps", lambda config: 10 * config.norms.eps),
        *(lambda config: "layers.0.attn_norm", starts_with_norm),
    ),
    configured(
        *("theta x 1.02", "rope.theta", lambda config: 1.02 * config.rope.theta),
        *(lambda config: f"layers.{first(rope='global')(config)}.attn.q", is_rotated),
    ),
    configured(
        *("head tied", "head.tied", lambda config: True, lambda config: "embed.attend"),
        *(has_not("head.tied"), "logits"),
    ),
    configured(
        *("head untied", "head.tied", lambda config: False, lambda config: "lm_head"),
        *(has("head.tied"), "logits"),
    ),
    configured(
        *("logits uncapped", "head.softcap", lambda config: None),
        lambda config: "embed.attend" if config.head.tied else "lm_head",
        *(has("head.softcap"), "logits"),
    ),
)
