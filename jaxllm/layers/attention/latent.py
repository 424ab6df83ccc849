"""Multi-head latent attention: all heads' keys and values are computed from one small latent.

DeepSeek-AI, 2024, "DeepSeek-V2", section 2.1 and appendix C.
"""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import LayerKind, StackConfig
from jaxllm.layers.context import Context
from jaxllm.layers.hooks import apply_hook
from jaxllm.layers.linear import Linear, project
from jaxllm.layers.norm import Norm
from jaxllm.layers.together import project_and_sum
from jaxllm.sharding import constrain

from .attention import Attention
from .cache import Cache, LatentCache, NothingWritten
from .rope import Rotation, apply_rope


class LatentAttention(Attention):
    """Self-attention whose keys and values are projections of a latent of each token.

    With a token x, RoPE r, and N heads n, P is `kv_down(x)`, cut into c and k:

        c' = norm(c);  k' = r(k)                     the latent, and one rotated key for all heads
        (k_n, v_n) = kv_up_n c'                      keys and values of each head
        (q_n, p_n) = q_proj_n norm(q_down(x))        without a latent of queries: q_proj_n x
        score_n = scale (q_n . k_n + r(p_n) . k')    of a query and a key

    A cache holds c' and k'. With it, no keys and values are computed of its tokens: since
    `q_n . (U_n c') = (U_n^T q_n) . c'`, the queries are mapped to latents instead, all heads attend
    to the latents, and what they find is mapped to values.
    """

    def __init__(self, config: StackConfig, kind: LayerKind, *, rngs: nnx.Rngs):
        latent = config.attention.latent
        assert latent is not None, "checked by the caller"
        D, N, H, P = config.embed_dim, config.num_heads, config.head_dim, latent.kv_rank
        Q, bias = latent.query_rank, config.attention.qkv_bias
        linear = partial(Linear, config=config, rngs=rngs)
        norm = partial(Norm, config=config, eps=latent.norm_eps)
        self.q_down = nnx.data(None if Q is None else linear("BTD,DQ->BTQ", (D, Q), use_bias=bias))
        self.q_norm = nnx.data(None if Q is None else norm("Q", (Q,)))
        queries = "BTD,DNH->BTNH" if Q is None else "BTQ,QNH->BTNH"
        self.q_proj = linear(queries, (Q or D, N, H))
        self.kv_down = linear("BTD,DP->BTP", (D, P + latent.rope_dim), use_bias=bias)
        self.kv_norm = norm("P", (P,))
        self.unrotated = H - latent.rope_dim  # elements of a head's queries and keys
        self.kv_up = linear("BTP,PNH->BTNH", (P, N, self.unrotated + latent.value_dim))
        self.o_proj = linear(
            "BTNH,NHD->BTD",
            (N, latent.value_dim, D),
            use_bias=config.attention.out_bias,
            dtype=config.numerics.residual_dtype,
        )
        self.sinks = nnx.data(None)
        self.config, self.kind, self.rank = config, kind, P

    def __call__(
        self, x_BTD: Array, context: Context, cache: Cache | None = None
    ) -> tuple[Array, Cache | None]:
        """Returns the attention output, BTD, and the cache with these tokens added.

        Args:
            x_BTD: the layer's input.
            context: segments, positions and bias. Segments are ignored with a cache.
            cache: the layer's own.
        """
        positions_BT = context.resolve_positions(x_BTD.shape[1])
        q_BTNH = self.project_queries(x_BTD, positions_BT)
        x_BTKH = self.compress(x_BTD, positions_BT)
        if isinstance(cache, LatentCache):
            cache, (x_BSKH, keys_BS) = cache.extend(x_BTKH, positions_BT)
            out_BTNH = self.attend_latents(q_BTNH, x_BSKH, keys_BS, context, positions_BT)
        else:
            if isinstance(cache, NothingWritten):
                cache = cache.write(x_BTKH, positions_BT)
                context = context._replace(segment_ids_BT=(positions_BT >= 0).astype(jnp.int32))
            k_BTNH, v_BTNH = self.expand(x_BTKH)
            q_BTNH, k_BTNH, v_BTNH = apply_hook(self, q=q_BTNH, k=k_BTNH, v=v_BTNH)
            out_BTNH = self.attend(q_BTNH, k_BTNH, v_BTNH, context, positions_BT)
        (out_BTNH,) = apply_hook(self, mixed=out_BTNH)
        return project_and_sum(self.o_proj, constrain(out_BTNH, "BTNH")), cache

    def project_queries(self, x_BTD: Array, positions_BT: Array) -> Array:
        """Returns the queries, BTNH, whose last elements are rotated."""
        if self.q_down is not None:
            assert self.q_norm is not None, "beside every latent of queries"
            x_BTD = self.q_norm(self.q_down(x_BTD))
        q_BTNH = self.q_proj(x_BTD)
        still_BTNH, turned_BTNH = q_BTNH[..., : self.unrotated], q_BTNH[..., self.unrotated :]
        turned_BTNH = self.rotate(turned_BTNH, positions_BT)
        return constrain(jnp.concatenate([still_BTNH, turned_BTNH], axis=-1), "BTNH")

    def compress(self, x_BTD: Array, positions_BT: Array) -> Array:
        """Returns each token's latent, followed by its rotated key, as one head: BTKH."""
        x_BTP = self.kv_down(x_BTD)
        latent_BTP, key_BTP = self.kv_norm(x_BTP[..., : self.rank]), x_BTP[..., self.rank :]
        key_BTKH = self.rotate(key_BTP[:, :, None], positions_BT)
        return jnp.concatenate([latent_BTP[:, :, None], key_BTKH], axis=-1)

    def rotate(self, x_BTNH: Array, positions_BT: Array) -> Array:
        """Applies RoPE, if the layer has it."""
        rotation = Rotation.from_config(self.config, self.kind)
        return x_BTNH if rotation is None else apply_rope(x_BTNH, positions_BT, rotation)

    def expand(self, x_BTKH: Array) -> tuple[Array, Array]:
        """Returns the keys and the values of all heads, BTNH, of what `compress` returns."""
        kv_BTNH = self.kv_up(x_BTKH[..., 0, : self.rank])
        k_BTNH, v_BTNH = kv_BTNH[..., : self.unrotated], kv_BTNH[..., self.unrotated :]
        key_BTKH = x_BTKH[..., self.rank :]
        key_BTNH = jnp.broadcast_to(key_BTKH, (*k_BTNH.shape[:-1], key_BTKH.shape[-1]))
        k_BTNH = jnp.concatenate([k_BTNH, key_BTNH], axis=-1)
        return constrain(k_BTNH, "BTNH"), constrain(v_BTNH, "BTNH")

    def attend_latents(
        self,
        q_BTNH: Array,
        x_BSKH: Array,
        keys_BS: Array,
        context: Context,
        positions_BT: Array,
    ) -> Array:
        """Attends from each token to what the cache holds at positions `keys_BS`, BTNH."""
        kernel_PNH = self.kv_up.kernel[...]
        if self.kv_up.lora is not None:
            kernel_PNH = (kernel_PNH + self.kv_up.lora.delta()).astype(kernel_PNH.dtype)
        keys_PNH, values_PNH = kernel_PNH[..., : self.unrotated], kernel_PNH[..., self.unrotated :]
        still_BTNH, turned_BTNH = q_BTNH[..., : self.unrotated], q_BTNH[..., self.unrotated :]
        mapped_BTNP = project("BTNH,PNH->BTNP", still_BTNH, keys_PNH).astype(q_BTNH.dtype)
        q_BTNH = constrain(jnp.concatenate([mapped_BTNP, turned_BTNH], axis=-1), "BTNH")
        seen = x_BSKH, x_BSKH[..., : self.rank], keys_BS
        found_BTNP = self.attend_cached(q_BTNH, *seen, context, positions_BT)
        return project("BTNP,PNH->BTNH", found_BTNP, values_PNH).astype(q_BTNH.dtype)
