"""A config that says something else than the reference's."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxllm.config import DecoderConfig
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
    """A field has another value, which the config shows, and `place` the computing."""

    def configure(model: Decoder) -> Decoder:
        config = dataclasses.replace(model.config, **{field: value(model.config)})
        arrays = arrays_of(model)
        if config.tie_embeddings:
            arrays.pop("lm_head.kernel", None)
        elif model.config.tie_embeddings:  # a head that has lost touch with the embeddings
            arrays["lm_head.kernel"] = 1.01 * arrays["embed.embedding"].T
        return with_arrays(build_abstract(config), arrays)

    return Mutation(
        name=f"{name}, in the config",
        applies=applies,
        break_model=configure,
        signs=lambda config: {"config": f"config.{field}", level: place(config)},
    )


def relabelled(model: Decoder) -> Decoder:
    """The weights as they lie in the layout that they are not of."""
    other = "interleaved" if model.config.rope_layout == "half" else "half"
    config = dataclasses.replace(model.config, rope_layout=other)
    return with_arrays(build_abstract(config), arrays_of(model))


def misplaced(config: DecoderConfig) -> Signs:
    """Rules follow the layout, so that weights lie otherwise, but not where heads turn in part."""
    if config.rope_fraction < 1:
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
        *("eps x 10", "norm_eps", lambda config: 10 * config.norm_eps),
        *(lambda config: "layers.0.attn_norm", starts_with_norm),
    ),
    configured(
        *("theta x 1.02", "rope_theta", lambda config: 1.02 * config.rope_theta),
        *(lambda config: f"layers.{first(rope='global')(config)}.attn.q", is_rotated),
    ),
    configured(
        *("head tied", "tie_embeddings", lambda config: True, lambda config: "embed.attend"),
        *(has_not("tie_embeddings"), "logits"),
    ),
    configured(
        *("head untied", "tie_embeddings", lambda config: False, lambda config: "lm_head"),
        *(has("tie_embeddings"), "logits"),
    ),
    configured(
        *("logits uncapped", "logit_softcap", lambda config: None),
        lambda config: "embed.attend" if config.tie_embeddings else "lm_head",
        *(has("logit_softcap"), "logits"),
    ),
)
