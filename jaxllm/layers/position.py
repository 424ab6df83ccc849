"""Rotary position embedding (Su et al., 2021)."""

from typing import NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxllm.config import DecoderConfig, LayerKind, RopeLayout, RopeScaling


class Rotation(NamedTuple):
    """How a layer's queries and keys are rotated."""

    frequencies: np.ndarray  # radians per position of each rotated pair
    layout: RopeLayout

    @classmethod
    def of(cls, config: DecoderConfig, kind: LayerKind) -> Self | None:
        """That of a layer of this kind; None if it has no RoPE."""
        if config.positions != "rope" or kind.rope == "none":
            return None
        theta, scaling = config.rope_theta, config.rope_scaling
        if kind.rope == "local":
            theta, scaling = config.local_rope_theta, None
        rotated = int(config.head_dim * config.rope_fraction)
        return cls(rope_frequencies(rotated, theta, scaling), config.rope_layout)


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Radians per position of each of the H/2 rotated pairs.

    Computed once, on the host, and rounded to float32 where PyTorch rounds, so that the tables
    agree with the originals whatever the accelerator.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # The power in float64: NumPy's float32 power is off by up to two units in the last place,
    # which 131072 positions turn into 2e-4 radians.
    powers = (theta ** exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1.0) / powers
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / np.float32(scaling.factor)
    return _llama3_frequencies(frequencies, scaling)


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


def apply_rope(x_BTNH: Array, positions_BT: Array, rotation: Rotation) -> Array:
    """Rotates each pair of the first elements of `x` by `position * frequency`.

    Pair j of R rotated elements is (j, j + R/2) in the `half` layout of Hugging Face Llama and
    (2j, 2j + 1) in the `interleaved` layout of the paper and of Meta's code. Elements past R
    stay as they are. Same dtype out as in.
    """
    # float32: bfloat16 cannot tell position 257 from 256.
    angles = positions_BT[..., None, None].astype(jnp.float32) * rotation.frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    R = 2 * rotation.frequencies.size
    rotated, rest = x_BTNH[..., :R], x_BTNH[..., R:]
    pairs = (2, -1) if rotation.layout == "half" else (-1, 2)
    axis = -2 if rotation.layout == "half" else -1
    x = rotated.astype(jnp.float32).reshape(*rotated.shape[:-1], *pairs)
    x1, x2 = jnp.take(x, 0, axis), jnp.take(x, 1, axis)
    turned = jnp.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis)
    turned = turned.reshape(rotated.shape).astype(x_BTNH.dtype)
    return jnp.concatenate([turned, rest], -1) if rest.shape[-1] else turned
