"""Mutations of weights: mistakes that a conversion could make."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxllm.config import DecoderConfig
from jaxllm.models.decoder import Decoder

from .features import (
    Feature,
    Layer,
    always,
    has,
    has_dense,
    has_not,
    is_gated,
    is_rotated,
    is_square,
    last_dense,
    last_experts,
    second_layer,
)
from .mutation import Mutation, Signs, arrays_of, with_changed

Change = Callable[[jax.Array, DecoderConfig], jax.Array]


def swapped(
    name: str,
    one: str,
    other: str,
    layer: Layer = second_layer,
    computed: str = "",
    applies: Feature = always,
) -> Mutation:
    """Swaps the weights of two modules of a layer; `computed` is the first wrong activation."""

    def swap(model: Decoder) -> Decoder:
        prefix, arrays = f"layers.{layer(model.config)}.", arrays_of(model)
        changed = {}
        for path in arrays:
            if path.startswith(f"{prefix}{one}."):
                twin = path.replace(f"{prefix}{one}.", f"{prefix}{other}.")
                changed |= {path: arrays[twin], twin: arrays[path]}
        assert changed, f"no {prefix}{one}"
        return with_changed(model, changed)

    def signs(config: DecoderConfig) -> Signs:
        prefix = f"layers.{layer(config)}."
        return {"weights": (prefix + one, prefix + other), "layers": prefix + (computed or one)}

    return Mutation(name=f"{name}, in the weights", applies=applies, break_model=swap, signs=signs)


def changed(
    name: str,
    parameter: str,
    change: Change,
    layer: Layer | None = second_layer,
    computed: str = "",
    applies: Feature = always,
    level: str = "layers",
) -> Mutation:
    """Changes one parameter, of `layer` if given; `computed` is the first wrong activation."""
    module = parameter.rpartition(".")[0]

    def path_of(name: str, config: DecoderConfig) -> str:
        return name if layer is None else f"layers.{layer(config)}.{name}"

    def alter(model: Decoder) -> Decoder:
        path = path_of(parameter, model.config)
        return with_changed(model, {path: change(arrays_of(model)[path], model.config)})

    return Mutation(
        name=f"{name}, in the weights",
        applies=applies,
        break_model=alter,
        signs=lambda config: {
            "weights": path_of(module, config),
            level: path_of(computed or module, config),
        },
    )


def interleaved(kernel_DNH: jax.Array, config: DecoderConfig) -> jax.Array:
    """Reorders the rotated pairs of each head to the other RoPE layout."""
    R = int(config.head_dim * config.rope.fraction)
    rotated, rest = kernel_DNH[..., :R], kernel_DNH[..., R:]
    pairs = (2, -1) if config.rope.layout == "half" else (-1, 2)
    turned = rotated.reshape(*rotated.shape[:-1], *pairs).mT.reshape(rotated.shape)
    return jnp.concatenate([turned, rest], axis=-1)


def transposed(kernel_DNH: jax.Array, config: DecoderConfig) -> jax.Array:
    D = len(kernel_DNH)
    return kernel_DNH.reshape(D, D).T.reshape(kernel_DNH.shape)


def without_last(kernel_EFD: jax.Array, config: DecoderConfig) -> jax.Array:
    """Gives the last expert the first one's weights, as if a loop over experts ended too early."""
    return kernel_EFD.at[-1].set(kernel_EFD[0])


def heads_reversed(kernel_DKH: jax.Array, config: DecoderConfig) -> jax.Array:
    return kernel_DKH[:, ::-1]


def in_half_precision(kernel: jax.Array, config: DecoderConfig) -> jax.Array:
    return kernel.astype(jnp.bfloat16).astype(jnp.float32)


def layers_swapped(model: Decoder) -> Decoder:
    one, other = (f"layers.{i}.attn.o_proj.kernel" for i in (1, 2))
    arrays = arrays_of(model)
    return with_changed(model, {one: arrays[other], other: arrays[one]})


Q, K, V = (f"attn.{name}_proj" for name in "qkv")
GATE, UP, DOWN = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))
WEIGHTS = (
    swapped("norms swapped", "attn_norm", "mlp_norm"),
    swapped("gate and up swapped", GATE, UP, last_dense, applies=is_gated),
    swapped("experts' gate and up swapped", GATE, UP, last_experts, "mlp", has("experts")),
    swapped("k and v swapped", K, V),
    Mutation(
        name="layers swapped, in the weights",
        break_model=layers_swapped,
        signs=lambda config: dict.fromkeys(("weights", "layers"), "layers.1.attn.o_proj"),
    ),
    changed("rope layout of q", f"{Q}.kernel", interleaved, applies=is_rotated),
    changed("rope layout of k", f"{K}.kernel", interleaved, applies=is_rotated),
    changed("k heads reversed", f"{K}.kernel", heads_reversed),
    changed("v heads reversed", f"{V}.kernel", heads_reversed),
    changed("square projection transposed", f"{Q}.kernel", transposed, applies=is_square),
    changed(
        "last expert dropped", f"{DOWN}.kernel", without_last, last_experts, "mlp", has("experts")
    ),
    changed(
        "rounded to bfloat16", f"{DOWN}.kernel", in_half_precision, last_dense, applies=has_dense
    ),
    changed("not a number", "attn_norm.scale", lambda scale, _: scale.at[0].set(jnp.nan)),
    changed(
        *("bias dropped", "attn.o_proj.bias", lambda bias, _: 0 * bias),
        applies=has("attention.out_bias"),
    ),
    changed("norm shifted by one", "final_norm.scale", lambda scale, _: scale - 1, None),
    changed(
        *("norm off by 1e-4 in one place", "final_norm.scale"),
        *(lambda scale, _: scale.at[3].multiply(1 + 1e-4), None),
    ),
    changed(
        "a token's embedding", "embed.embedding", lambda table, _: table.at[7, 0].add(1e-3), None
    ),
    changed(
        *("one logit off", "lm_head.kernel", lambda head_DV, _: head_DV.at[:, 5].multiply(1.001)),
        *(None, "", has_not("head.tied"), "logits"),
    ),
)
