"""Grouped-query attention (Ainslie et al., 2023) with rotary positions."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import DecoderConfig
from jaxllm.layers.cache import KVCache
from jaxllm.layers.linear import Linear
from jaxllm.layers.position import apply_rope, rope_frequencies
from jaxllm.sharding import constrain

MIN_BLOCK = 128  # queries; smaller blocks save little more and make small products
MAX_BLOCKS = 16  # in a program, whatever the length


class Attention(nnx.Module):
    """Causal self-attention; with a cache, attention to everything in the cache."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        linear = partial(Linear, config=config, use_bias=config.attn_bias, rngs=rngs)
        self.q_proj = linear("BTD,DNH->BTNH", (D, N, H))
        self.k_proj = linear("BTD,DKH->BTKH", (D, K, H))
        self.v_proj = linear("BTD,DKH->BTKH", (D, K, H))
        self.o_proj = linear("BTNH,NHD->BTD", (N, H, D))
        self.config = config

    def __call__(
        self,
        x_BTD: Array,
        positions_BT: Array,
        segment_ids_BT: Array | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Array, KVCache | None]:
        """The attended values, BTD, and the cache with `x` written to it."""
        q_BTNH = constrain(self.q_proj(x_BTD), "BTNH")
        k_BTKH = constrain(self.k_proj(x_BTD), "BTKH")
        v_BTKH = constrain(self.v_proj(x_BTD), "BTKH")
        q_BTNH = self.rotate(q_BTNH, positions_BT)
        k_BTKH = self.rotate(k_BTKH, positions_BT)
        if cache is None:
            out_BTNH = causal_attention(q_BTNH, k_BTKH, v_BTKH, segment_ids_BT)
        else:
            cache = cache.write(k_BTKH, v_BTKH, positions_BT)
            out_BTNH = attention(q_BTNH, *cache, cache.visible(positions_BT))
        return self.o_proj(constrain(out_BTNH, "BTNH")), cache

    def rotate(self, x_BTNH: Array, positions_BT: Array) -> Array:
        """Queries or keys with their positions in them."""
        config = self.config
        frequencies = rope_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        return apply_rope(x_BTNH, positions_BT, frequencies, config.rope_layout)


def attention(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, mask_BTS: Array) -> Array:
    """`softmax(q k / sqrt(H)) v` where the mask is True, BTNH.

    Each key/value head serves G consecutive query heads. The mask may have 1 for B. The softmax
    is in float32; a query that sees nothing gets the mean of v.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores_BKGTS = einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH) * H**-0.5
    lowest = jnp.finfo(jnp.float32).min
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores_BKGTS, lowest)
    probs_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    out_BTKGH = einsum("BKGTS,BSKH->BTKGH", probs_BKGTS, v_BSKH).astype(v_BSKH.dtype)
    return out_BTKGH.reshape(B, T, N, H)


def causal_attention(
    q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, segment_ids_BT: Array | None = None
) -> Array:
    """Attention of each token to itself and to those before it in its segment, BTNH.

    Goes by blocks of queries, each of which sees the keys up to its own end: half the work of
    masking all T x T scores. The backward pass computes the probabilities again (Dao et al.,
    2022), so that none are kept.
    """
    T = q_BTNH.shape[1]
    size = max(MIN_BLOCK, -(-T // MAX_BLOCKS))
    attend = jax.checkpoint(attention)
    outs = []
    for start in range(0, T, size):
        stop = min(start + size, T)
        mask_BTS = (jnp.arange(start, stop)[:, None] >= jnp.arange(stop))[None]
        if segment_ids_BT is not None:
            own, seen = segment_ids_BT[:, start:stop], segment_ids_BT[:, :stop]
            mask_BTS &= own[:, :, None] == seen[:, None, :]
        queries = q_BTNH[:, start:stop]
        outs.append(attend(queries, k_BTKH[:, :stop], v_BTKH[:, :stop], mask_BTS))
    return jnp.concatenate(outs, axis=1)
