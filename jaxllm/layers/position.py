"""Rotary position embedding (Su et al., 2021)."""

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxllm.config import RopeLayout, RopeScaling


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


def apply_rope(
    x_BTNH: Array, positions_BT: Array, frequencies: np.ndarray, layout: RopeLayout
) -> Array:
    """Rotates each pair of `x` by `position * frequency`.

    Pair j is (j, j + H/2) in the `half` layout of Hugging Face Llama and (2j, 2j + 1) in the
    `interleaved` layout of the paper and of Meta's code. Same dtype out as in.
    """
    # float32: bfloat16 cannot tell position 257 from 256.
    angles = positions_BT[..., None, None].astype(jnp.float32) * frequencies
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    pairs = (2, -1) if layout == "half" else (-1, 2)
    axis = -2 if layout == "half" else -1
    x = x_BTNH.astype(jnp.float32).reshape(*x_BTNH.shape[:-1], *pairs)
    x1, x2 = jnp.take(x, 0, axis), jnp.take(x, 1, axis)
    rotated = jnp.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis)
    return rotated.reshape(x_BTNH.shape).astype(x_BTNH.dtype)
