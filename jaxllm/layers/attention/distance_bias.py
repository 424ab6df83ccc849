"""Biases added to attention scores by query-key distance: ALiBi, T5 buckets, learned distances."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxllm.config import RelativeBuckets, StackConfig
from jaxllm.layers.context import Bias
from jaxllm.sharding import constrain


def make_bias(config: StackConfig, *, rngs: nnx.Rngs) -> Bias | None:
    """Makes the bias that all layers share; None if the config's positions have none."""
    if config.positions.kind == "alibi":
        return Alibi(config)
    if config.positions.kind == "relative":
        return RelativeBias(config, rngs=rngs)
    return None


class Alibi(nnx.Module):
    """ALiBi: a penalty linear in distance, with a fixed slope per head (Press et al., 2022)."""

    def __init__(self, config: StackConfig):
        self.num_heads = config.num_heads

    def __call__(self, queries_BT: Array, keys_BS: Array) -> Array:
        """Returns the bias of queries and keys at these positions, BNTS."""
        distance_BTS = jnp.abs(keys_BS[:, None, :] - queries_BT[:, :, None])
        slopes_N = jnp.asarray(alibi_slopes(self.num_heads))
        return constrain(-slopes_N[:, None, None] * distance_BTS[:, None], "BNTS")


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Returns the slope of each head n, `2 ** (-8 (n + 1) / N)`, in float32.

    If N is not a power of two: the slopes for the next lower power of two, followed by every other
    slope for the next higher one.
    """
    below = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8 * np.arange(1, below + 1) / below)
    between = 2.0 ** (-8 * np.arange(1, 2 * below, 2) / (2 * below))
    return np.concatenate([slopes, between])[:num_heads].astype(np.float32)


class DistanceBias(nnx.Module):
    """A learned bias per head and distance, behind and ahead, up to `max_len - 1`."""

    def __init__(self, config: StackConfig, *, rngs: nnx.Rngs):
        shape = (2 * config.max_len - 1, config.num_heads)
        table = config.init.std * rngs.params.normal(shape, config.numerics.param_dtype)
        self.farthest = config.max_len - 1
        self.embedding = nnx.Param(table, dims=".N", summed=".")

    def __call__(self, queries_BT: Array, keys_BS: Array) -> Array:
        """Returns the bias of queries and keys at these positions, BNTS, in float32.

        Distances beyond the table give NaN.
        """
        ahead_BTS = keys_BS[:, None, :] - queries_BT[:, :, None]
        # Negative rows would index from the end: distances too far behind go past the last row.
        row_past_all = 2 * self.farthest + 1
        rows_BTS = jnp.where(ahead_BTS < -self.farthest, row_past_all, ahead_BTS + self.farthest)
        table_NR = self.embedding[...].astype(jnp.float32).T
        bias_NBTS = table_NR.at[:, rows_BTS].get(mode="fill", fill_value=jnp.nan)
        return constrain(jnp.moveaxis(bias_NBTS, 0, 1), "BNTS")


class RelativeBias(nnx.Module):
    """A learned bias per head and bucket of distances, as in T5 (Raffel et al., 2020)."""

    def __init__(self, config: StackConfig, *, rngs: nnx.Rngs):
        buckets = config.positions.relative
        assert buckets is not None, "checked by the config"
        shape = (buckets.count, config.num_heads)
        table = config.init.std * rngs.params.normal(shape, config.numerics.param_dtype)
        self.buckets, self.causal = buckets, config.attention.causal
        self.embedding = nnx.Param(table, dims=".N", summed=".")

    def __call__(self, queries_BT: Array, keys_BS: Array) -> Array:
        """Returns the bias of queries and keys at these positions, BNTS, in float32."""
        farthest = self.buckets.max_distance
        # A small table of the bias at each distance ahead, from -farthest to farthest.
        table_NU = self.embedding[...].astype(jnp.float32).T
        numbers_NR = table_NU[:, bucket_table(self.buckets, self.causal)]
        ahead_BTS = keys_BS[:, None, :] - queries_BT[:, :, None]
        rows_BTS = jnp.clip(ahead_BTS, -farthest, farthest) + farthest
        return constrain(jnp.moveaxis(numbers_NR[:, rows_BTS], 0, 1), "BNTS")


def bucket_table(relative: RelativeBuckets, causal: bool) -> np.ndarray:
    """Returns the bucket of each distance ahead, from `-max_distance` to `max_distance`.

    On each side, the first half of the buckets hold one distance each; the rest widen
    logarithmically. Computed on the host in float32, as PyTorch does, since rounding decides at
    the edges of buckets.
    """
    ahead = np.arange(-relative.max_distance, relative.max_distance + 1)
    own = relative.count if causal else relative.count // 2
    distance = np.maximum(-ahead, 0) if causal else np.abs(ahead)
    exact = own // 2
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    growth = ratio / np.float32(math.log(relative.max_distance / exact)) * np.float32(own - exact)
    wide = np.minimum(exact + growth.astype(np.int64), own - 1)
    bucket = np.where(distance < exact, distance, wide)
    return bucket if causal else bucket + np.where(ahead > 0, own, 0)
