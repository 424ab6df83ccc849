"""Sinusoidal position embeddings (Vaswani et al., 2017)."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxllm.config import Waves

from .rope import rope_powers


def sinusoids(positions_BT: Array, embed_dim: int, waves: Waves = "power") -> Array:
    """Returns the sinusoidal embedding of each position, BTD, in float32.

    At position p, element 2j is `sin(p / 10000 ** (2j / D))` and element 2j + 1 is the cosine of
    the same angle.
    """
    angles = positions_BT[..., None].astype(jnp.float32) * wave_frequencies(embed_dim, waves)
    both = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return both.reshape(*positions_BT.shape, -1)[..., :embed_dim]


def wave_frequencies(embed_dim: int, waves: Waves) -> np.ndarray:
    """Returns the radians per position of each sinusoid, rounded as in the PyTorch models."""
    if waves == "power":
        return np.float32(1.0) / rope_powers(embed_dim, 10000.0)
    step = np.float32(-math.log(10000.0) / embed_dim)
    exponents = np.arange(0, embed_dim, 2, dtype=np.float32) * step
    return np.exp(exponents.astype(np.float64)).astype(np.float32)
