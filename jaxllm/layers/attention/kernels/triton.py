"""FlashAttention for GPUs, written in Pallas (Dao et al., 2022; Dao, 2023).

Scores live in tiles on the chip; memory holds only the logarithm of each query's sum. Masks come
from positions and segment ids, by the same rule as everywhere else. Tiles in which no query sees a
key are left out, and tiles in which every query sees every key need no mask.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxllm.layers.linear import ATTENDED

from .call import PADDING, Call, padded, round_up
from .tiles import Tokens, tile_ranges, visible_tiles
from .triton_tiles import LOG2E, Places, Rules, backward_keys, backward_queries, forward

KEYS = 64  # per tile


class Operands(NamedTuple):
    """Queries, keys and values in whole tiles, with the tokens that they belong to."""

    q_BTNH: Array
    k_BSKH: Array
    v_BSKH: Array
    queries: Tokens
    keys: Tokens
    sinks_N: Array | None


def triton_attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, call: Call, *, interpret: bool = False
) -> Array:
    """Computes self-attention, BTNH, on a GPU; with `interpret`, anywhere and slowly."""
    B, T, _, H = q_BTNH.shape
    size = _queries_per_tile(H)

    def fit(x: Array, tile: int) -> Array:
        x = padded(x, round_up(x.shape[1], tile))
        return jnp.pad(x, [(0, 0)] * 3 + [(0, pl.next_power_of_2(H) - H)])

    queries, keys = _tokens(call, B, round_up(T, size), round_up(k_BSKH.shape[1], KEYS))
    arrays = fit(q_BTNH, size), fit(k_BSKH, KEYS), fit(v_BSKH, KEYS)
    rules = Rules(call.mask_spec, call.scale, call.softcap)
    out_BTNH = _attend(Operands(*arrays, queries, keys, call.sinks_N), rules, interpret)
    return out_BTNH[:, :T, :, :H]


def _queries_per_tile(H: int) -> int:
    return 128 if H <= 128 else 64  # a tile of wider heads does not fit the registers


def _tokens(call: Call, B: int, T: int, S: int) -> tuple[Tokens, Tokens]:
    """Returns the tokens of all queries and keys, with padding up to T and S."""
    own, all_ids_BS = call.indices, call.segments
    # Padding of a batch is last in its row: as the greatest id, it is far from all others.
    all_ids_BS = jnp.where(all_ids_BS == 0, PADDING - 1, all_ids_BS)
    places = jnp.arange(call.order.size)[None], call.positions_BS, all_ids_BS

    def side(arrays: tuple[Array, ...], length: int) -> Tokens:
        index, at, ids = (jnp.broadcast_to(x, (B, x.shape[1])) for x in arrays)
        return Tokens(
            padded(index, length, PADDING), padded(at, length), padded(ids, length, PADDING)
        )

    return side(tuple(x[:, own] for x in places), T), side(places, S)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _attend(operands: Operands, rules: Rules, interpret: bool) -> Array:
    return _forward(operands, rules, interpret)[0]


def _forward(operands: Operands, rules: Rules, interpret: bool) -> tuple[Array, Any]:
    q, k, v, queries, keys, sinks_N = operands
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    size = _queries_per_tile(H)
    tiles = visible_tiles(rules.mask_spec, queries, keys, (size, KEYS))
    own, every = _tile(size, H), _all(S, H, N // K)
    sink = None if sinks_N is None else pl.BlockSpec((1,), lambda i, b, n: (n,))
    out_BTNH, log_sum_BNT = pl.pallas_call(
        partial(forward, rules=rules, size=KEYS),
        grid=(T // size, B, N),
        in_specs=(_RANGE, own, every, every, _tile_places(size), _all_places(S), sink),
        out_shape=(
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((B, N, T), jnp.float32),
        ),
        out_specs=(own, _tile_sums(size)),
        compiler_params=plgpu.CompilerParams(num_warps=8 if H > 64 else 4, num_stages=2),
        interpret=interpret,
        name="attention_forward",
    )(tile_ranges(*tiles), q, k, v, _places(queries), _places(keys), sinks_N)
    out_BTNH = checkpoint_name(out_BTNH, ATTENDED)
    return out_BTNH, (operands, out_BTNH, checkpoint_name(log_sum_BNT, ATTENDED))


def _backward(rules: Rules, interpret: bool, saved: Any, grad_BTNH: Array) -> tuple[Operands]:
    (q, k, v, queries, keys, sinks_N), out_BTNH, log_sum_BNT = saved
    (B, T, N, H), (S, K) = q.shape, k.shape[1:3]
    dot_BNT = jnp.einsum("BTNH,BTNH->BNT", out_BTNH, grad_BTNH, preferred_element_type=jnp.float32)
    some, every = visible_tiles(rules.mask_spec, queries, keys, (KEYS, KEYS))
    arrays = (_places(queries), _places(keys), grad_BTNH, log_sum_BNT, dot_BNT)
    options: dict[str, Any] = {
        "compiler_params": plgpu.CompilerParams(num_warps=8 if H > 64 else 4, num_stages=2),
        "interpret": interpret,
    }
    own, all_keys = _tile(KEYS, H), _all(S, H, N // K)
    sums = _tile_sums(KEYS)
    dq_BTNH = pl.pallas_call(
        partial(backward_queries, rules=rules, size=KEYS),
        grid=(T // KEYS, B, N),
        in_specs=(
            *(_RANGE, own, all_keys, all_keys, _tile_places(KEYS), _all_places(S)),
            *(own, sums, sums),
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        out_specs=own,
        name="attention_backward_queries",
        **options,
    )(tile_ranges(some, every), q, k, v, *arrays)
    G = N // K
    group = pl.BlockSpec((None, T, G, H), lambda j, b, n: (b, 0, n, 0))
    group_sums = pl.BlockSpec((None, G, T), lambda j, b, n: (b, n, 0))
    dk_BSKH, dv_BSKH = pl.pallas_call(
        partial(backward_keys, rules=rules, size=KEYS),
        grid=(S // KEYS, B, K),
        in_specs=(
            *(_RANGE, group, own, own, _all_places(T), _tile_places(KEYS)),
            *(group, group_sums, group_sums),
        ),
        out_shape=(
            jax.ShapeDtypeStruct(k.shape, k.dtype),
            jax.ShapeDtypeStruct(v.shape, v.dtype),
        ),
        out_specs=(own, own),
        name="attention_backward_keys",
        **options,
    )(tile_ranges(some.swapaxes(1, 2), every.swapaxes(1, 2)), q, k, v, *arrays)
    dsinks_N = None
    if sinks_N is not None:
        probs_BNT = jnp.exp2(sinks_N[:, None] * LOG2E - log_sum_BNT)
        dsinks_N = -jnp.einsum("BNT,BNT->N", probs_BNT, dot_BNT).astype(sinks_N.dtype)
    none_q, none_k = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), (queries, keys))
    return (Operands(dq_BTNH, dk_BSKH, dv_BSKH, none_q, none_k, dsinks_N),)


_attend.defvjp(_forward, _backward)


# What a program sees of an array: programs are numbered by tile, row of the batch and head.
_RANGE = pl.BlockSpec((None, None, 4), lambda i, b, n: (b, i, 0))


def _tile(size: int, H: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, size, None, H), lambda i, b, n: (b, i, n, 0))


def _all(length: int, H: int, group: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, length, None, H), lambda i, b, n: (b, 0, n // group, 0))


def _tile_sums(size: int) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, size), lambda i, b, n: (b, n, i))


def _tile_places(size: int) -> Places:
    each = pl.BlockSpec((None, size), lambda i, b, n: (b, i))
    return Places(each, each)


def _all_places(length: int) -> Places:
    each = pl.BlockSpec((None, length), lambda i, b, n: (b, 0))
    return Places(each, each)


def _places(tokens: Tokens) -> Places:
    return Places(tokens.positions_BT, tokens.segment_ids_BT)
