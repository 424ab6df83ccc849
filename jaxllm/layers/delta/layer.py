"""Gated DeltaNet: queries read from a state that each token's key and value correct.

Yang et al., 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule", as in Qwen3-Next.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.config import LayerKind, StackConfig
from jaxllm.layers.attention.cache import Cache, NothingWritten
from jaxllm.layers.attention.recurrent_cache import DeltaCache
from jaxllm.layers.context import Context
from jaxllm.layers.hooks import apply_hook
from jaxllm.layers.linear import Linear
from jaxllm.layers.norm import Norm
from jaxllm.layers.together import project_together
from jaxllm.sharding import constrain

from .convolution import Convolution
from .rule import Tokens, delta_rule, unit_length


class GatedDeltaNet(nnx.Module):
    """Mixes tokens by a recurrent state of fixed size, in place of attention.

    With a token x, a convolution c of it and the tokens before it, and the rest for each head:

        q, k, v = c(q_proj x), c(k_proj x), c(v_proj x);  q and k are scaled to unit length
        a = exp(-exp(decay_rate) softplus(decay_proj x + decay_bias))    what the state keeps
        b = sigmoid(beta_proj x)                                         how much is corrected
        S <- a S + b k (v - a k^T S)^T                                   the delta rule
        o_proj (norm(q^T S / sqrt(H)) * silu(gate_proj x))               the output

    Each text of a packed row starts with an empty state: a text is a run of tokens with one segment
    id. A cache holds S and the last tokens before the convolutions, whatever the length.
    """

    def __init__(self, config: StackConfig, kind: LayerKind, *, rngs: nnx.Rngs):
        delta = config.attention.delta
        assert delta is not None, "checked by the config"
        assert kind.attention == "delta", "checked by the caller"
        D, N, K = config.embed_dim, delta.num_heads, delta.num_key_heads
        keys, values = (K, delta.key_dim), (N, delta.value_dim)
        linear = partial(Linear, config=config, rngs=rngs)
        convolution = partial(Convolution, size=delta.conv_size, config=config, rngs=rngs)
        self.q_proj = linear("BTD,DKH->BTKH", (D, *keys))
        self.k_proj = linear("BTD,DKH->BTKH", (D, *keys))
        self.v_proj = linear("BTD,DNH->BTNH", (D, *values))
        self.gate_proj = linear("BTD,DNH->BTNH", (D, *values))
        self.beta_proj = linear("BTD,DN->BTN", (D, N))
        self.decay_proj = linear("BTD,DN->BTN", (D, N))
        self.q_conv = convolution("KH", keys)
        self.k_conv = convolution("KH", keys)
        self.v_conv = convolution("NH", values)
        rates_N = jax.random.uniform(rngs.params(), (N,), minval=0.01, maxval=16.0)
        dtype = config.numerics.param_dtype
        self.decay_rate = nnx.Param(jnp.log(rates_N).astype(dtype), dims="N")
        self.decay_bias = nnx.Param(jnp.ones(N, dtype), dims="N")
        self.norm = Norm("H", (delta.value_dim,), config, kind="rms")
        self.o_proj = linear(
            "BTNH,NHD->BTD", (N, *values[1:], D), dtype=config.numerics.residual_dtype
        )
        self.config, self.repeats = config, N // K

    def __call__(
        self, x_BTD: Array, context: Context, cache: Cache | None = None
    ) -> tuple[Array, Cache | None]:
        """Returns the output, BTD, and the cache after these tokens.

        Args:
            x_BTD: the layer's input.
            context: segments and positions. Segments are ignored with a cache, and positions
                without one.
            cache: the layer's own.
        """
        names = "q_proj", "k_proj", "v_proj", "gate_proj", "beta_proj", "decay_proj"
        linears = [getattr(self, name) for name in names]
        *channels, gate_BTNH, beta_BTN, decay_BTN = project_together(linears, x_BTD)
        positions_BT = context.resolve_positions(x_BTD.shape[1])
        positions_BT = jnp.broadcast_to(positions_BT, x_BTD.shape[:2])
        before = self._start(positions_BT, cache)
        runs_BT = _runs(positions_BT, None if cache is not None else context.segment_ids_BT)
        convolutions = zip((self.q_conv, self.k_conv, self.v_conv), channels, strict=True)
        q_BTKH, k_BTKH, v_BTNH = (
            conv(x, runs_BT, own)
            for (conv, x), own in zip(convolutions, before.before, strict=True)
        )
        q_BTKH, k_BTKH, v_BTNH = apply_hook(self, q=q_BTKH, k=k_BTKH, v=v_BTNH)
        beta_BTN, decay_BTN = jax.nn.sigmoid(beta_BTN), self.decay(decay_BTN)
        beta_BTN, decay_BTN = apply_hook(self, beta=beta_BTN, decay=decay_BTN)
        is_token_BT1 = (positions_BT >= 0)[..., None]
        tokens = Tokens(
            self._keys(q_BTKH) * q_BTKH.shape[-1] ** -0.5,
            self._keys(k_BTKH),
            constrain(v_BTNH.astype(jnp.float32), "B.NH"),
            jnp.where(is_token_BT1, decay_BTN, 0),
            jnp.where(is_token_BT1, beta_BTN.astype(jnp.float32), 0),
            runs_BT,
        )
        out_BTNH, state_BNHW = delta_rule(tokens, before.state_BNHW)
        (out_BTNH,) = apply_hook(self, mixed=out_BTNH.astype(x_BTD.dtype))
        after = None if cache is None else before.after(channels, state_BNHW, positions_BT)
        return self.o_proj(constrain(self.gated(out_BTNH, gate_BTNH), "BTNH")), after

    def gated(self, out_BTNH: Array, gate_BTNH: Array) -> Array:
        """Returns what was read from the state, normalized, times the gate: BTNH."""
        gate_BTNH = jax.nn.silu(gate_BTNH.astype(jnp.float32))
        return (self.norm(out_BTNH) * gate_BTNH).astype(out_BTNH.dtype)

    def decay(self, x_BTN: Array) -> Array:
        """Returns the logarithm of what the state keeps, BTN, in float32."""
        rate_N, bias_N = (x[...].astype(jnp.float32) for x in (self.decay_rate, self.decay_bias))
        return -jnp.exp(rate_N) * jax.nn.softplus(x_BTN.astype(jnp.float32) + bias_N)

    def _keys(self, x_BTKH: Array) -> Array:
        """Returns queries or keys of unit length for each head of values, BTNH, in float32."""
        return constrain(jnp.repeat(unit_length(x_BTKH), self.repeats, axis=2), "B.NH")

    def _start(self, positions_BT: Array, cache: Cache | None) -> DeltaCache:
        """Returns the cache before these tokens; without one, that of no tokens."""
        if cache is None:
            return DeltaCache.empty(self.config, len(positions_BT))
        is_new = isinstance(cache, NothingWritten)
        given = cache.cache if isinstance(cache, NothingWritten) else cache
        assert isinstance(given, DeltaCache), "made by make_cache"
        given = given.cleared() if is_new else given
        return given._replace(state_BNHW=given.state_before(positions_BT))


def _runs(positions_BT: Array, segment_ids_BT: Array | None) -> Array:
    """Returns the number of each token's text in its row, from 0 on, BT."""
    if segment_ids_BT is None:
        return jnp.zeros_like(positions_BT)
    ids_BT = jnp.broadcast_to(segment_ids_BT, positions_BT.shape)
    is_first_BT = ids_BT[:, 1:] != ids_BT[:, :-1]
    return jnp.pad(jnp.cumsum(is_first_BT, axis=1), ((0, 0), (1, 0)))
