"""Sinusoidal position embeddings (Vaswani et al., 2017)."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxllm.config import Waves

from .rope import rope_powers


def sinusoids(positions_BT: Array, embed_dim: int, waves: Waves = "power") -> Array:
    """Returns the sinusoidal embedding of each position, BTD, in float32.

    At position p, wave j has the angle `p * frequency_j`. Element 2j is its sine and element
    2j + 1 its cosine; of the kinds "halves" and "tensor2tensor", elements j and D/2 + j.
    """
    positions_BT1 = positions_BT[..., None].astype(jnp.float32)
    if waves == "halves":
        both = _exact_waves(positions_BT1, embed_dim)
    else:
        angles = positions_BT1 * wave_frequencies(embed_dim, waves)
        both = jnp.sin(angles), jnp.cos(angles)
    if waves in ("halves", "tensor2tensor"):
        return jnp.concatenate(both, axis=-1)
    stacked = jnp.stack(both, axis=-1)
    return stacked.reshape(*positions_BT.shape, -1)[..., :embed_dim]


def wave_frequencies(embed_dim: int, waves: Waves) -> np.ndarray:
    """Returns the radians per position of each sinusoid, rounded as in the PyTorch models."""
    if waves in ("power", "halves"):
        return np.float32(1.0) / rope_powers(embed_dim, 10000.0)
    if waves == "tensor2tensor":
        step = np.float32(-math.log(10000.0) / max(embed_dim // 2 - 1, 1))
        exponents = np.arange(embed_dim // 2, dtype=np.float32) * step
    else:
        step = np.float32(-math.log(10000.0) / embed_dim)
        exponents = np.arange(0, embed_dim, 2, dtype=np.float32) * step
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


def _exact_waves(positions_BT1: Array, embed_dim: int) -> tuple[Array, Array]:
    """Returns sines and cosines of float64 angles, without float64.

    A frequency is the sum of one with 12 bits, whose product with a position below 4096 is exact,
    and of a remainder, whose angle is so small that its rounding does not count.
    """
    exact = 10000.0 ** -(np.arange(0, embed_dim, 2) / embed_dim)
    mantissa, exponent = np.frexp(exact)
    first = np.ldexp(np.round(mantissa * 2**12) / 2**12, exponent)
    large = positions_BT1 * first.astype(np.float32)
    small = positions_BT1 * (exact - first).astype(np.float32)
    sin, cos, rest_sin, rest_cos = jnp.sin(large), jnp.cos(large), jnp.sin(small), jnp.cos(small)
    return sin * rest_cos + cos * rest_sin, cos * rest_cos - sin * rest_sin
