"""Cross-attention of a decoder to an encoder's output."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import StackConfig
from jaxllm.layers.context import Source
from jaxllm.layers.hooks import apply_hook, has_hook
from jaxllm.layers.linear import Linear
from jaxllm.layers.together import project_and_sum
from jaxllm.sharding import constrain

from .attention import attention, hook_block, query_blocks
from .cache import SourceKV
from .mask import same_segment


class CrossAttention(nnx.Module):
    """Attention with queries from the decoder and keys and values from the encoder.

    It uses no positions.
    """

    def __init__(self, config: StackConfig, *, rngs: nnx.Rngs):
        D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        linear = partial(Linear, config=config, use_bias=config.attention.qkv_bias, rngs=rngs)
        self.q_proj = linear("BTD,DNH->BTNH", (D, N, H))
        self.k_proj = linear("BSD,DKH->BSKH", (D, K, H))
        self.v_proj = linear("BSD,DKH->BSKH", (D, K, H))
        self.o_proj = linear(
            "BTNH,NHD->BTD",
            (N, H, D),
            use_bias=config.attention.out_bias,
            dtype=config.numerics.residual_dtype,
        )
        self.config = config

    def project_source(self, source: Source) -> SourceKV:
        """Computes the keys and values of a source, which all tokens of the target share."""
        k_BSKH = constrain(self.k_proj(source.x_BSD), "BSKH")
        v_BSKH = constrain(self.v_proj(source.x_BSD), "BSKH")
        k_BSKH, v_BSKH = apply_hook(self, k=k_BSKH, v=v_BSKH)
        return SourceKV(k_BSKH, v_BSKH, source.segment_ids_BS)

    def __call__(
        self, x_BTD: Array, source: SourceKV, segment_ids_BT: Array | None = None
    ) -> Array:
        """Attends from each token to the source tokens of its segment, BTD.

        Works in blocks of queries; the backward pass recomputes their probabilities.

        Args:
            x_BTD: the decoder's tokens.
            source: from `project_source`.
            segment_ids_BT: segments of the decoder's tokens. Default: all 1.
        """
        B, T = x_BTD.shape[:2]
        if segment_ids_BT is None:
            segment_ids_BT = jnp.ones((B, T), jnp.int32)
        q_BTNH = constrain(self.q_proj(x_BTD), "BTNH")
        (q_BTNH,) = apply_hook(self, q=q_BTNH)
        scale, softcap = self.config.attention.scale, self.config.attention.softcap
        attend: Callable[..., Array] = partial(attention, scale=scale, softcap=softcap)
        if has_hook(self):  # not checkpointed: a hook cannot record tracers
            S = source.k_BSKH.shape[1]
            attend = partial(attend, hook=partial(hook_block, self, slice(0, S), S))
        else:
            attend = jax.checkpoint(attend)
        outs = []
        for own in query_blocks(T):
            mask_BTS = same_segment(segment_ids_BT[:, own], source.segment_ids_BS)
            outs.append(attend(q_BTNH[:, own], source.k_BSKH, source.v_BSKH, mask_BTS))
        out_BTNH = jnp.concatenate(outs, axis=1)
        (out_BTNH,) = apply_hook(self, mixed=out_BTNH)
        return project_and_sum(self.o_proj, constrain(out_BTNH, "BTNH"))
