"""The programs of the GPU kernels: each computes one tile of outputs, in a loop over tiles.

Scores are to the base 2, in which GPUs exponentiate. A name's letters are those of the tile: T and
S for its queries and keys.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxllm.layers.attention.mask import MaskSpec, same_segment

LOG2E = 1.4426950408889634  # log2(e)
# The score of a masked key: the difference of two scores is finite.
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)


class Rules(NamedTuple):
    """How scores are computed; see `Call`."""

    mask_spec: MaskSpec
    scale: float
    softcap: float | None


class Places(NamedTuple):
    """References to the positions and segment ids of the tokens along one side."""

    positions: Any
    segment_ids: Any

    def __getitem__(self, tokens: Any) -> tuple[Array, Array]:
        return self.positions[tokens], self.segment_ids[tokens]


def scores(
    rules: Rules, q_TH: Array, k_SH: Array, places: tuple[tuple, tuple] | None
) -> tuple[Array, Array | None]:
    """Returns scores, TS, and the slope of the soft cap, TS, if there is one.

    `places` are positions and segment ids of queries and keys; None: all see all.
    """
    scores_TS, slope_TS = plgpu.dot(q_TH, k_SH.T), None
    if rules.softcap is None:
        scores_TS = scores_TS * (rules.scale * LOG2E)
    else:
        tanh_TS = jnp.tanh(scores_TS * (rules.scale / rules.softcap))
        scores_TS, slope_TS = tanh_TS * (rules.softcap * LOG2E), 1 - tanh_TS * tanh_TS
    if places is not None:
        (at_T, id_T), (at_S, id_S) = places
        seen_TS = rules.mask_spec.sees(at_T[:, None], at_S[None, :])
        seen_TS &= same_segment(id_T[None], id_S[None])[0]
        scores_TS = jnp.where(seen_TS, scores_TS, MASKED)
    return scores_TS, slope_TS


def over_tiles(range_ref: Any, add: Callable[[bool], Callable], sums: Any) -> Any:
    """Adds up tiles, of which a range in the middle needs no mask; see `tile_ranges`."""
    first, start, stop, end = (range_ref[i] for i in range(4))
    sums = jax.lax.fori_loop(first, start, add(True), sums)
    sums = jax.lax.fori_loop(start, stop, add(False), sums)
    return jax.lax.fori_loop(stop, end, add(True), sums)


def forward(
    range_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, queries: Places, keys: Places,
    sinks_ref: Any, out_ref: Any, log_sum_ref: Any, *, rules: Rules, size: int,
) -> None:  # fmt: skip
    """Writes the outputs of a tile of queries, TH, and the logarithms of their sums, T."""
    q_TH, at_T = q_ref[...], queries[...]
    T = q_TH.shape[0]

    def add(is_masked: bool) -> Callable:
        def tile(j: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            out_TH, sum_T, most_T = sums
            own = pl.ds(j * size, size)
            places = (at_T, keys[own]) if is_masked else None
            scores_TS, _ = scores(rules, q_TH, k_ref[own, :], places)
            new_most_T = jnp.maximum(most_T, jnp.max(scores_TS, axis=1))
            shrink_T = jnp.exp2(most_T - new_most_T)
            probs_TS = jnp.exp2(scores_TS - new_most_T[:, None])
            sum_T = sum_T * shrink_T + jnp.sum(probs_TS, axis=1)
            v_SH = v_ref[own, :]
            out_TH = out_TH * shrink_T[:, None] + plgpu.dot(probs_TS.astype(v_SH.dtype), v_SH)
            return out_TH, sum_T, new_most_T

        return tile

    zero_TH, zero_T = jnp.zeros(q_TH.shape, jnp.float32), jnp.zeros((T,), jnp.float32)
    sums = zero_TH, zero_T, zero_T + MASKED
    if sinks_ref is not None:
        sums = zero_TH, zero_T + 1, zero_T + sinks_ref[0] * LOG2E
    out_TH, sum_T, most_T = over_tiles(range_ref, add, sums)
    sum_T = jnp.where(sum_T > 0, sum_T, 1)  # a tile of padding alone
    out_ref[...] = (out_TH / sum_T[:, None]).astype(out_ref.dtype)
    log_sum_ref[...] = most_T + jnp.log2(sum_T)


def backward_queries(
    range_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, queries: Places, keys: Places,
    grad_ref: Any, log_sum_ref: Any, dot_ref: Any, dq_ref: Any, *, rules: Rules, size: int,
) -> None:  # fmt: skip
    """Writes the gradients of a tile of queries, TH."""
    q_TH, at_T, grad_TH = q_ref[...], queries[...], grad_ref[...]
    log_sum_T, dot_T = log_sum_ref[...], dot_ref[...]

    def add(is_masked: bool) -> Callable:
        def tile(j: Array, dq_TH: Array) -> Array:
            own = pl.ds(j * size, size)
            k_SH = k_ref[own, :]
            places = (at_T, keys[own]) if is_masked else None
            scores_TS, slope_TS = scores(rules, q_TH, k_SH, places)
            probs_TS = jnp.exp2(scores_TS - log_sum_T[:, None])
            ds_TS = probs_TS * (plgpu.dot(grad_TH, v_ref[own, :].T) - dot_T[:, None])
            ds_TS = ds_TS if slope_TS is None else ds_TS * slope_TS
            return dq_TH + plgpu.dot(ds_TS.astype(k_SH.dtype), k_SH)

        return tile

    dq_TH = over_tiles(range_ref, add, jnp.zeros(q_TH.shape, jnp.float32))
    dq_ref[...] = (dq_TH * rules.scale).astype(dq_ref.dtype)


def backward_keys(
    range_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, queries: Places, keys: Places,
    grad_ref: Any, log_sum_ref: Any, dot_ref: Any, dk_ref: Any, dv_ref: Any,
    *, rules: Rules, size: int,
) -> None:  # fmt: skip
    """Writes the gradients of a tile of keys and values, SH, from the G heads that use them."""
    k_SH, v_SH, at_S = k_ref[...], v_ref[...], keys[...]

    def add_head(g: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        def add(is_masked: bool) -> Callable:
            def tile(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
                dk_SH, dv_SH = sums
                own = pl.ds(i * size, size)
                q_TH, grad_TH = q_ref[own, g, :], grad_ref[own, g, :]
                places = (queries[own], at_S) if is_masked else None
                scores_TS, slope_TS = scores(rules, q_TH, k_SH, places)
                probs_TS = jnp.exp2(scores_TS - log_sum_ref[g, own][:, None])
                dv_SH += plgpu.dot(probs_TS.astype(grad_TH.dtype).T, grad_TH)
                ds_TS = probs_TS * (plgpu.dot(grad_TH, v_SH.T) - dot_ref[g, own][:, None])
                ds_TS = ds_TS if slope_TS is None else ds_TS * slope_TS
                return dk_SH + plgpu.dot(ds_TS.astype(q_TH.dtype).T, q_TH), dv_SH

            return tile

        return over_tiles(range_ref, add, sums)

    zero_SH = jnp.zeros(k_SH.shape, jnp.float32)
    dk_SH, dv_SH = jax.lax.fori_loop(0, q_ref.shape[1], add_head, (zero_SH, zero_SH))
    dk_ref[...] = (dk_SH * rules.scale).astype(dk_ref.dtype)
    dv_ref[...] = dv_SH.astype(dv_ref.dtype)
