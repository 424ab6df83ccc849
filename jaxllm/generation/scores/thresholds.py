"""Cuts through a distribution over the vocabulary, found by bisection: nothing is sorted.

A float has 32 bits, so that 32 sums over the vocabulary find the exact number at which a count or a
probability is reached. A sort of the vocabulary takes many times as long.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

BITS = 32
TILE = 256  # probabilities are added in tiles, whose sums are added then: less is rounded off


def keep_top_k(logits_BV: Array, k_B: Array) -> Array:
    """Sets all but the `k` largest logits of each row to -inf; those equal to the last one stay."""
    keys_BV = _ordered(logits_BV)
    wanted_B = jnp.minimum(k_B, logits_BV.shape[-1])
    least_B1 = _largest(lambda t_B1: jnp.sum(keys_BV >= t_B1, axis=-1) >= wanted_B, len(k_B))
    return jnp.where(keys_BV < least_B1, -jnp.inf, logits_BV)


def keep_top_p(logits_BV: Array, p_B: Array) -> Array:
    """Keeps the fewest of the most likely tokens that add up to `p`; those equal to the last stay.

    Nucleus sampling (Holtzman et al., 2020). At least one token is kept.
    """
    keys_BV, probs_BV = _ordered(logits_BV), jax.nn.softmax(logits_BV, axis=-1)
    least_B1 = _largest(lambda t_B1: _mass(probs_BV, keys_BV < t_B1) <= 1 - p_B, len(p_B))
    least_B1 = jnp.minimum(least_B1, keys_BV.max(axis=-1, keepdims=True))
    return jnp.where(keys_BV < least_B1, -jnp.inf, logits_BV)


def keep_typical(logits_BV: Array, p_B: Array) -> Array:
    """Keeps the fewest tokens that add up to `p`, those of the most typical information first.

    Locally typical sampling (Meister et al., 2023): the information of a token, `-log p`, is
    typical if it is close to the entropy.
    """
    log_probs_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    keys_BV = _ordered(jnp.abs(-log_probs_BV - _entropy(log_probs_BV)))
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)
    most_B1 = _largest(lambda t_B1: _mass(probs_BV, keys_BV < t_B1) < p_B, len(p_B))
    return jnp.where(keys_BV > most_B1, -jnp.inf, logits_BV)


def keep_min_p(logits_BV: Array, p_B: Array) -> Array:
    """Keeps the tokens with at least `p` times the probability of the most likely one."""
    probs_BV = jax.nn.softmax(logits_BV, axis=-1)
    return _drop_below(logits_BV, p_B[:, None] * probs_BV.max(axis=-1, keepdims=True))


def keep_above_epsilon(logits_BV: Array, epsilon_B: Array) -> Array:
    """Keeps the tokens of at least this probability (Hewitt et al., 2022)."""
    return _drop_below(logits_BV, epsilon_B[:, None])


def keep_above_eta(logits_BV: Array, eta_B: Array) -> Array:
    """Keeps the tokens of at least this probability, or less with much entropy (the same paper)."""
    eta_B1, entropy_B1 = eta_B[:, None], _entropy(jax.nn.log_softmax(logits_BV, axis=-1))
    return _drop_below(logits_BV, jnp.minimum(eta_B1, jnp.sqrt(eta_B1) * jnp.exp(-entropy_B1)))


def _drop_below(logits_BV: Array, least_B1: Array) -> Array:
    """Sets tokens below a probability to -inf, but not the most likely one."""
    is_out_BV = jax.nn.softmax(logits_BV, axis=-1) < least_B1
    is_out_BV &= logits_BV < logits_BV.max(axis=-1, keepdims=True)
    return jnp.where(is_out_BV, -jnp.inf, logits_BV)


def _entropy(log_probs_BV: Array) -> Array:
    """Returns the entropy of each row, B1."""
    terms_BV = jnp.where(jnp.isfinite(log_probs_BV), jnp.exp(log_probs_BV) * log_probs_BV, 0)
    return -terms_BV.sum(axis=-1, keepdims=True)


def _ordered(x_BV: Array) -> Array:
    """Maps floats to unsigned integers of the same order."""
    bits_BV = jax.lax.bitcast_convert_type(x_BV.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << (BITS - 1))
    return jnp.where(bits_BV >= sign, ~bits_BV, bits_BV | sign)


def _largest(holds: Callable[[Array], Array], num_rows: int) -> Array:
    """Returns the largest integer of each row, B1, for which `holds` returns True, bit by bit.

    `holds` must be true for 0 and, if it is false for a number, for none above.
    """

    def set_bit(i: Array, found_B1: Array) -> Array:
        tried_B1 = found_B1 | (jnp.uint32(1 << (BITS - 1)) >> i.astype(jnp.uint32))
        return jnp.where(holds(tried_B1)[:, None], tried_B1, found_B1)

    return jax.lax.fori_loop(0, BITS, set_bit, jnp.zeros((num_rows, 1), jnp.uint32))


def _mass(probs_BV: Array, mask_BV: Array) -> Array:
    """Returns the total probability where the mask is True, B."""
    masked_BV = jnp.where(mask_BV, probs_BV, 0)
    masked_BV = jnp.pad(masked_BV, ((0, 0), (0, -masked_BV.shape[-1] % TILE)))
    return masked_BV.reshape(len(masked_BV), -1, TILE).sum(axis=-1).sum(axis=-1)
