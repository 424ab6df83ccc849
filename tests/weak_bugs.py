"""Bugs with a strength, to find the weakest that parity notices."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from mutants.mutation import arrays_of, copy_of, with_changed

from jaxllm.config import DecoderConfig, with_fields
from jaxllm.interop.parity.alignment.references.overrides import attribute
from jaxllm.layers.mlp import MLP
from jaxllm.models import build_abstract
from jaxllm.models.decoder import Decoder
from jaxllm.params import with_arrays

NUM_FLIPPED = 8  # numbers of a matrix in which a bit is flipped

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


def place_of(model: Decoder, where: str) -> int:
    """Returns the index of the first, middle or last layer."""
    count = model.config.num_layers
    return {"first": 0, "middle": count // 2, "last": count - 1}[where]


def in_layer(
    where: str, bug: Callable[[str], Callable[[Decoder, float], Decoder]]
) -> Callable[[Decoder, float], Decoder]:
    """Returns a bug in one layer, which `bug` builds from the layer's path."""
    return lambda model, strength: bug(f"layers.{place_of(model, where)}")(model, strength)


def flipped_bits(name: str) -> Callable[[Decoder, float], Decoder]:
    """Returns a function that flips one bit in a few numbers of a matrix, of about the strength."""

    def weaken(model: Decoder, strength: float) -> Decoder:
        numbers = np.array(arrays_of(model)[name])
        bits = numbers.reshape(-1).view(np.uint32)
        places = np.linspace(0, bits.size - 1, NUM_FLIPPED).astype(int)
        bits[places] ^= np.uint32(1 << max(0, 23 + math.floor(math.log2(strength))))
        return with_changed(model, {name: jnp.asarray(numbers)})

    return weaken


def rounded_output(path: str) -> Callable[[Decoder, float], Decoder]:
    """Returns a function that rounds the output of one layer's MLP."""

    def weaken(model: Decoder, strength: float) -> Decoder:
        changed = copy_of(model)
        modules = {".".join(map(str, at)): module for at, module in nnx.iter_modules(changed)}
        original = type(modules[f"{path}.mlp"])

        class Rounded(original):
            def __call__(self, *args: object, **options: object) -> object:
                return _rounded(super().__call__(*args, **options), strength)

        modules[f"{path}.mlp"].__class__ = Rounded
        return changed

    return weaken


def scaled_factor(model: Decoder, strength: float) -> Decoder:
    """Multiplies the factor of RoPE scaling by one plus the strength."""
    scaling = model.config.rope.scaling
    other = dataclasses.replace(scaling, factor=scaling.factor * (1 + strength))
    config = with_fields(model.config, {"rope.scaling": other})
    return with_arrays(build_abstract(config), arrays_of(model))


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
    WeakBug(
        "factor of RoPE scaling",
        scaled_factor,
        lambda config: getattr(config.rope.scaling, "factor", None) is not None,
    ),
    *(
        WeakBug(f"{what}, {where} layer", in_layer(where, bug))
        for what, bug in (
            ("a norm's scale", lambda path: scaled_weights(f"{path}.mlp_norm.scale")),
            ("a bit of 8 weights", lambda path: flipped_bits(f"{path}.attn.q_proj.kernel")),
            ("precision of an MLP's output", rounded_output),
        )
        for where in ("first", "middle", "last")
    ),
)
