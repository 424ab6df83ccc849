"""Rotary position embeddings (RoPE; Su et al., 2021) and their scaling for long contexts."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxllm.config import LayerKind, RopeLayout, RopeScaling, StackConfig


class Rotation(NamedTuple):
    """The rotation of a layer's queries and keys.

    If frequencies depend on the sequence length ("dynamic", "longrope"), the length is the last
    position of a row in one call of the model, plus one; padding, at position -1, does not count.
    With a cache, queries are then rotated at the frequencies of the length so far, while cached
    keys stay as they were written, as in transformers. Up to `original_max_len` this equals a call
    without a cache; beyond, it does not, in transformers or here. (With LongRoPE,
    `jaxllm.generation` reads a text again when it exceeds that length, as `generate` of Phi-3 in
    transformers does.)
    """

    frequencies: np.ndarray  # radians per position of each rotated pair, P
    layout: RopeLayout
    attention_factor: float = 1.0  # factor of cosines and sines
    # Maps sequence lengths, B111, to frequencies, B11P; None if they do not depend on the length.
    at_length: Callable[[Array], Array] | None = None

    @classmethod
    def from_config(cls, config: StackConfig, kind: LayerKind) -> Self | None:
        """Returns the rotation of a layer of this kind; None if it has no RoPE."""
        if config.positions.kind != "rope" or kind.rope == "none":
            return None
        theta, scaling = config.rope.theta, config.rope.scaling
        if kind.rope == "local":
            theta, scaling = config.rope.local_theta, None
        rotated = int(config.rope_dim * config.rope.fraction)
        return cls.with_scaling(rotated, theta, scaling, config.rope.layout)

    @classmethod
    def with_scaling(
        cls, rotated: int, theta: float, scaling: RopeScaling | None, layout: RopeLayout
    ) -> Self:
        """Returns a rotation of a head's first `rotated` elements."""
        frequencies = rope_frequencies(rotated, theta, scaling)
        if scaling is None:
            return cls(frequencies, layout)
        at_length: Callable[[Array], Array] | None = None
        if scaling.kind == "dynamic":
            at_length = partial(_dynamic_frequencies, frequencies, scaling)
        if scaling.kind == "longrope":
            long = _longrope_frequencies(rope_powers(rotated, theta), scaling.long_factor)
            at_length = lambda length: jnp.where(  # noqa: E731
                length > scaling.original_max_len, long, frequencies
            )
        return cls(frequencies, layout, attention_factor(scaling), at_length)

    def angles(self, positions_BT: Array) -> Array:
        """Returns the angle in radians of each pair, the same in all heads, BT1P."""
        frequencies: np.ndarray | Array = self.frequencies
        if self.at_length is not None:
            length_B = jnp.max(positions_BT, axis=1) + 1
            frequencies = self.at_length(length_B[:, None, None, None])
        # float32: bfloat16 cannot tell position 257 from 256.
        return positions_BT[..., None, None].astype(jnp.float32) * frequencies


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Returns the frequency of each rotated pair, P, for sequences up to the original length.

    Computed once, on the host, and rounded to float32 where PyTorch rounds, so that the tables
    agree with the originals on every accelerator.

    Args:
        head_dim: number of rotated elements of a head, twice the number of pairs.
        theta: base of the frequencies.
        scaling: of the frequencies.

    Returns:
        Radians per position.
    """
    powers = rope_powers(head_dim, theta)
    frequencies = np.float32(1.0) / powers
    if scaling is None or scaling.kind == "dynamic":
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    if scaling.kind == "llama3":
        return _llama3_frequencies(frequencies, scaling)
    if scaling.kind == "yarn":
        return _yarn_frequencies(powers, theta, scaling)
    return _longrope_frequencies(powers, scaling.short_factor)


def rope_powers(head_dim: int, theta: float) -> np.ndarray:
    """Returns `theta ** (2 j / head_dim)` of each pair j, P, rounded to float32 as in PyTorch."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # The power in float64: NumPy's float32 power is off by up to two units in the last place,
    # which 131072 positions turn into 2e-4 radians.
    return (theta ** exponents.astype(np.float64)).astype(np.float32)


def _llama3_frequencies(frequencies: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    wavelengths = 2 * np.pi / frequencies
    stretched = frequencies / np.float32(scaling.factor)
    # With high == low no wavelength is in between, and the blend would divide by zero.
    turns = scaling.original_max_len / wavelengths
    blend = (turns - low) / (high - low) if high > low else np.zeros_like(frequencies)
    blended = (1 - blend) * stretched + blend * frequencies
    is_short = wavelengths < scaling.original_max_len / high
    is_long = wavelengths > scaling.original_max_len / low
    scaled = np.where(is_short, frequencies, np.where(is_long, stretched, blended))
    return scaled.astype(np.float32)


def _yarn_frequencies(powers: np.ndarray, theta: float, scaling: RopeScaling) -> np.ndarray:
    H, one = 2 * powers.size, np.float32(1)

    def pair(turns: float) -> float:
        """Returns the fractional index of the pair that makes `turns` in the original length."""
        return (
            H * math.log(scaling.original_max_len / (2 * math.pi * turns)) / (2 * math.log(theta))
        )

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, H - 1)
    width = np.float32(last - first if last != first else 0.001)
    rising = (np.arange(powers.size, dtype=np.float32) - np.float32(first)) / width
    kept = one - np.clip(rising, 0, 1)
    stretched = one / (np.float32(scaling.factor) * powers)
    return stretched * (one - kept) + one / powers * kept


def _longrope_frequencies(powers: np.ndarray, factors: Sequence[float]) -> np.ndarray:
    return np.float32(1) / (np.array(factors, np.float32) * powers)


def _dynamic_frequencies(frequencies: np.ndarray, scaling: RopeScaling, length: Array) -> Array:
    """Returns the frequencies for theta * growth ** (H / (H - 2)).

    `growth` is 1 up to the original length.
    """
    excess = jnp.maximum(length - scaling.original_max_len, 0) / scaling.original_max_len
    growth = 1 + scaling.factor * excess.astype(jnp.float32)
    # 2j/(H - 2) for pair j of H/2. Multiplying the table by a power close to 1 is more accurate
    # than a new power of theta, by a factor of the logarithm of theta.
    exponents = np.arange(frequencies.size, dtype=np.float32) / np.float32(frequencies.size - 1)
    return jnp.asarray(frequencies) * growth**-exponents


def attention_factor(scaling: RopeScaling) -> float:
    """Returns the factor of cosines and sines: as given, or as the paper of the kind suggests."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.kind == "yarn":
        return 0.1 * math.log(scaling.factor) + 1.0
    if scaling.kind == "longrope":
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_max_len))
    return 1.0


def apply_rope(x_BTNH: Array, positions_BT: Array, rotation: Rotation) -> Array:
    """Rotates each pair of a head's first R elements by `position * frequency`.

    Pair j is (j, j + R/2) in the `half` layout of Hugging Face Llama, and (2j, 2j + 1) in the
    `interleaved` layout of the paper and of Meta's code. Elements from R on are not rotated. The
    result has the dtype of `x`.
    """
    angles = rotation.angles(positions_BT)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    if rotation.attention_factor != 1.0:
        sin, cos = sin * rotation.attention_factor, cos * rotation.attention_factor
    R = 2 * rotation.frequencies.size
    rotated, rest = x_BTNH[..., :R], x_BTNH[..., R:]
    pairs = (2, -1) if rotation.layout == "half" else (-1, 2)
    axis = -2 if rotation.layout == "half" else -1
    x = rotated.astype(jnp.float32).reshape(*rotated.shape[:-1], *pairs)
    x1, x2 = jnp.take(x, 0, axis), jnp.take(x, 1, axis)
    turned = jnp.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis)
    turned = turned.reshape(rotated.shape).astype(x_BTNH.dtype)
    return jnp.concatenate([turned, rest], -1) if rest.shape[-1] else turned
