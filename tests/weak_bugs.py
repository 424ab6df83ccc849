"""Bugs with a strength, to find the weakest that parity notices."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import jax
import jax.numpy as jnp
import numpy as np
from mutants.mutation import arrays_of, with_changed

from jaxllm.config import DecoderConfig, with_fields
from jaxllm.interop.parity.alignment.overrides import attribute
from jaxllm.layers.mlp import MLP
from jaxllm.models import build_abstract
from jaxllm.models.decoder import Decoder
from jaxllm.params import with_arrays

# Strengths that are tried, from strong to weak.
STRENGTHS = tuple(float(f"{digit}e-{decade}") for decade in range(1, 9) for digit in (3, 1))


@dataclasses.dataclass(frozen=True)
class WeakBug:
    """A bug whose strength is the relative change that it makes.

    Attributes:
        name: what is changed.
        weaken: returns the model with the bug.
        applies: whether a model has what is changed.
        patch: changes a function of jaxllm in addition, for a given strength.
    """

    name: str
    weaken: Callable[[Decoder, float], Decoder] = lambda model, strength: model
    applies: Callable[[DecoderConfig], bool] = lambda config: True
    patch: Callable[[float], AbstractContextManager[None]] = lambda strength: nullcontext()


def scaled_field(field: str, value: Callable[[DecoderConfig], float]) -> Callable:
    """Returns a function that multiplies a config field by one plus the strength."""

    def weaken(model: Decoder, strength: float) -> Decoder:
        config = with_fields(model.config, {field: value(model.config) * (1 + strength)})
        return with_arrays(build_abstract(config), arrays_of(model))

    return weaken


def scaled_weights(name: str) -> Callable[[Decoder, float], Decoder]:
    """Returns a function that multiplies the parameter `name` by one plus the strength."""

    def weaken(model: Decoder, strength: float) -> Decoder:
        return with_changed(model, {name: arrays_of(model)[name] * np.float32(1 + strength)})

    return weaken


def rounded_weights(model: Decoder, strength: float) -> Decoder:
    """Zeroes the low bits of one weight matrix, up to the strength."""
    name = next(name for name in arrays_of(model) if name.endswith("mlp.down_proj.kernel"))
    return with_changed(model, {name: _rounded(arrays_of(model)[name], strength)})


@contextmanager
def rounded_step(strength: float) -> Iterator[None]:
    """Within this context, the outputs of all MLPs are rounded; bfloat16 has a strength of 4e-3."""
    original = MLP.__call__

    def call(self: MLP, *args: object, **options: object) -> object:
        return _rounded(original(self, *args, **options), strength)

    with attribute(MLP, "__call__", call):
        yield


def _rounded(x: jax.Array, strength: float) -> jax.Array:
    """Rounds to as many bits as leave a relative error of at most `strength`."""
    mantissa, exponent = jnp.frexp(x)
    steps = 2.0 ** np.ceil(-np.log2(strength))
    return jnp.ldexp(jnp.round(mantissa * steps) / steps, exponent)


def _scale(config: DecoderConfig) -> float:
    return config.attention.scale or config.head_dim**-0.5


BUGS = (
    WeakBug("eps of all norms", scaled_field("norms.eps", lambda config: config.norms.eps)),
    WeakBug(
        "theta of RoPE",
        scaled_field("rope.theta", lambda config: config.rope.theta),
        lambda config: config.positions.kind == "rope",
    ),
    WeakBug("softmax scale", scaled_field("attention.scale", _scale)),
    WeakBug("one norm's scale", scaled_weights("layers.1.mlp_norm.scale")),
    WeakBug("one projection's weights", scaled_weights("layers.1.attn.o_proj.kernel")),
    WeakBug("low bits of one weight matrix", rounded_weights),
    WeakBug("precision of the MLPs' outputs", patch=rounded_step),
)
