"""The gated delta rule: a recurrence over tokens, computed in chunks of them.

Yang et al., 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule", section 3, after Yang
et al., 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length".
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxllm.sharding import constrain

CHUNK = 64  # tokens that are computed together, by matmuls; a power of two
EPS = 1e-6  # added to the squared length of queries and keys

# Rounded inputs would add up in the state.
_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Tokens(NamedTuple):
    """The inputs of the delta rule for every token, in float32.

    Attributes:
        q_BTNH: queries, of length 1 / sqrt(H).
        k_BTNH: keys, of length 1.
        v_BTNW: values.
        decay_BTN: logarithms of the factors of the state, at most 0.
        beta_BTN: how much of what the state holds for a key is replaced by its value.
        runs_BT: numbers of the texts in a row, in ascending order: each starts with an empty state.
    """

    q_BTNH: Array
    k_BTNH: Array
    v_BTNW: Array
    decay_BTN: Array
    beta_BTN: Array
    runs_BT: Array


class Memory(NamedTuple):
    """The state after some tokens, and the number of the text that it belongs to."""

    state_BNHW: Array
    run_B: Array


def delta_rule(tokens: Tokens, state_BNHW: Array) -> tuple[Array, Array]:
    """Computes the outputs, BTNW, and the state after the last token, both in float32.

    For each token and head, with the state S, q, k, v, a = exp(decay) and b = beta:

        S <- a S (I - b k k^T) + b k v^T, written with S of H rows and W columns as
        S <- a S;  S <- S + k (b (v - k^T S))^T;  the output is q^T S

    Within a chunk of tokens t, with the products g_ts of the factors after s up to t, what each
    token adds is u_t = b_t (v_t - g_t k_t^T S - sum over s < t of g_ts (k_t . k_s) u_s): a
    triangular system. Then all outputs, and the state after the chunk, are matmuls of u.

    Args:
        tokens: of one or more texts a row.
        state_BNHW: the state before the first token, which belongs to run 0.
    """
    T = tokens.runs_BT.shape[1]
    size = min(CHUNK, 1 << (T - 1).bit_length())
    count = -(-T // size)
    padded = tokens._replace(runs_BT=_padded(tokens, -T % size))
    chunks = jax.tree.map(partial(_cut, count, size), padded)
    carry = Memory(state_BNHW, jnp.zeros(len(state_BNHW), jnp.int32))
    if count == 1:
        carry, out_BTNW = _chunk(carry, jax.tree.map(lambda x: x[0], chunks))
        return out_BTNW[:, :T], carry.state_BNHW
    carry, outs = jax.lax.scan(jax.checkpoint(_chunk), carry, chunks)
    out_BTNW = jnp.moveaxis(outs, 0, 1).reshape(len(state_BNHW), -1, *outs.shape[3:])
    return out_BTNW[:, :T], carry.state_BNHW


def unit_length(x: Array) -> Array:
    """Divides vectors by their length, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + EPS)


def _padded(tokens: Tokens, more: int) -> Array:
    """Returns the runs with `more` tokens after the last, of the same text."""
    return jnp.pad(tokens.runs_BT, ((0, 0), (0, more)), mode="edge")


def _cut(count: int, size: int, x: Array) -> Array:
    """Cuts the tokens into chunks, which come first; what is added at the end is zero."""
    more = count * size - x.shape[1]
    x = jnp.pad(x, ((0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(len(x), count, size, *x.shape[2:]), 1, 0)


def _chunk(memory: Memory, tokens: Tokens) -> tuple[Memory, Array]:
    """Computes a chunk of tokens; returns the state after it, and the outputs, BTNW."""
    q_BTNH, k_BTNH, v_BTNW, decay_BTN, beta_BTN, runs_BT = tokens
    T = runs_BT.shape[1]
    decay_BNT = jnp.moveaxis(decay_BTN, 1, 2)
    beta_BNT1 = jnp.moveaxis(beta_BTN, 1, 2)[..., None]
    growth_BNTS = _growth(decay_BNT, runs_BT)
    last_B1, total_BNT = runs_BT[:, -1:], jnp.cumsum(decay_BNT, axis=-1)
    is_known_BT = runs_BT == memory.run_B[:, None]  # the state is of the token's text
    known_BNT1 = jnp.where(is_known_BT[:, None], jnp.exp(total_BNT), 0)[..., None]

    k_BNTH = jnp.moveaxis(k_BTNH, 1, 2)
    products_BNTS = _einsum("BNTH,BNSH->BNTS", k_BNTH, k_BNTH) * growth_BNTS
    system_BNTS = jnp.where(jnp.tri(T, k=-1, dtype=bool), beta_BNT1 * products_BNTS, 0)
    held_BNTW = known_BNT1 * _einsum("BNTH,BNHW->BNTW", k_BNTH, memory.state_BNHW)
    wanted_BNTW = beta_BNT1 * (jnp.moveaxis(v_BTNW, 1, 2) - held_BNTW)
    added_BNTW = _einsum("BNTS,BNSW->BNTW", invert(system_BNTS), wanted_BNTW)

    scores_BNTS = _einsum("BTNH,BNSH->BNTS", q_BTNH, k_BNTH) * growth_BNTS
    out_BNTW = _einsum("BNTS,BNSW->BNTW", scores_BNTS, added_BNTW)
    out_BNTW += known_BNT1 * _einsum("BTNH,BNHW->BNTW", q_BTNH, memory.state_BNHW)
    kept_BNTH = k_BNTH * growth_BNTS[:, :, -1, :, None]
    state_BNHW = _einsum("BNTH,BNTW->BNHW", kept_BNTH, added_BNTW)
    state_BNHW += known_BNT1[:, :, -1:] * memory.state_BNHW
    after = Memory(constrain(state_BNHW, "BNHW"), last_B1[:, 0])
    return after, jnp.moveaxis(out_BNTW, 1, 2)


def _growth(decay_BNT: Array, runs_BT: Array) -> Array:
    """Returns what is left at each token t of what token s added, BNTS; 0 for another text's.

    The logarithms are summed from s on: differences of long sums would lose digits.
    """
    T = runs_BT.shape[1]
    places = jnp.arange(T)
    is_after_TS = places[:, None] > places
    sums_BNTS = jnp.cumsum(jnp.where(is_after_TS, decay_BNT[..., None], 0), axis=-2)
    is_seen_BTS = (runs_BT[:, :, None] == runs_BT[:, None]) & (places[:, None] >= places)
    return jnp.where(is_seen_BTS[:, None], jnp.exp(sums_BNTS), 0)


def invert(system: Array) -> Array:
    """Returns the inverse of I + A for strictly lower triangular matrices A of size 2^n.

    Diagonal blocks of size 1, 2, 4, ... are inverted: with the inverses P and Q of two neighbours
    and the block X below the first, that of both has -Q X P there. Powers of A, which also give
    the inverse, may be so large that no digit is left.
    """
    size = system.shape[-1]
    places = jnp.arange(size)
    inverse = jnp.broadcast_to(jnp.eye(size, dtype=system.dtype), system.shape)
    for width in (1 << i for i in range(size.bit_length() - 1)):
        blocks = places // width
        is_below = (blocks[:, None] == blocks + 1) & (blocks % 2 == 0)
        below = jnp.where(is_below, system, 0)
        inverse = inverse - _einsum("...ij,...jk,...kl->...il", inverse, below, inverse)
    return inverse
