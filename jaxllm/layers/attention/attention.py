"""Grouped-query self-attention (Ainslie et al., 2023), by a kernel or in blocks of queries."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxllm.config import LayerKind, StackConfig
from jaxllm.layers.context import Bias, Context
from jaxllm.layers.hooks import apply_hook, has_hook
from jaxllm.layers.linear import ATTENDED, Linear
from jaxllm.layers.norm import Norm, make_qk_norm, normalize
from jaxllm.layers.together import project_and_sum, project_together
from jaxllm.sharding import constrain

from .cache import Cache, KVCache, NothingWritten, RingCache
from .kernels.call import Call, without_nan_keys
from .kernels.choice import choose_kernel
from .kernels.devices import in_blocks, on_devices, splits_sequences
from .mask import MaskSpec, same_segment
from .rope import Rotation, apply_rope
from .temperature import temperature_growth

MIN_BLOCK = 128  # queries per block; smaller blocks save little and make matmuls small
MAX_BLOCKS = 16  # limits the size of the program for long sequences

# Called with ("scores", BKGTS) or ("probs", BKGTS); returns the values to use instead.
Hook = Callable[[str, Array], Array]

LOWEST = jnp.finfo(jnp.float32).min  # the score of a masked key


class Attention(nnx.Module):
    """Self-attention; with a cache, attention to all cached tokens."""

    def __init__(self, config: StackConfig, kind: LayerKind, *, rngs: nnx.Rngs):
        D, N, K, H = config.embed_dim, config.num_heads, config.num_kv_heads, config.head_dim
        linear = partial(Linear, config=config, use_bias=config.attention.qkv_bias, rngs=rngs)
        self.q_proj = linear("BTD,DNH->BTNH", (D, N, H))
        self.k_proj = linear("BTD,DKH->BTKH", (D, K, H))
        self.v_proj = linear("BTD,DKH->BTKH", (D, K, H))
        is_gated = config.attention.gated
        self.gate_proj = nnx.data(linear("BTD,DNH->BTNH", (D, N, H)) if is_gated else None)
        bias, dtype = config.attention.out_bias, config.numerics.residual_dtype
        self.o_proj = linear("BTNH,NHD->BTD", (N, H, D), use_bias=bias, dtype=dtype)
        self.q_norm = nnx.data(make_qk_norm(config, "NH", (N, H)))
        self.k_norm = nnx.data(make_qk_norm(config, "KH", (K, H)))
        sinks = nnx.Param(jnp.zeros(N, config.numerics.param_dtype), dims="N")
        self.sinks = nnx.data(sinks if config.attention.sinks else None)
        self.config, self.kind = config, kind

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
        given = self.q_proj, self.k_proj, self.v_proj, self.gate_proj
        projections = [linear for linear in given if linear is not None]
        q_BTNH, k_BTKH, v_BTKH, *gate = project_together(projections, x_BTD)
        q_BTNH = self.normalize_and_rotate(q_BTNH, self.q_norm, positions_BT)
        k_BTKH = self.normalize_and_rotate(k_BTKH, self.k_norm, positions_BT)
        q_BTNH = constrain(self.scale_by_temperature(q_BTNH, positions_BT), "BTNH")
        k_BTKH = constrain(k_BTKH, "BTKH")
        v_BTKH = constrain(v_BTKH, "BTKH")
        q_BTNH, k_BTKH, v_BTKH = apply_hook(self, q=q_BTNH, k=k_BTKH, v=v_BTKH)
        if self.config.attention.scale_by_depth:
            assert context.depth is not None, "set by the stack"
            q_BTNH = (q_BTNH / context.depth).astype(q_BTNH.dtype)
        if isinstance(cache, NothingWritten):
            cache = cache.write(k_BTKH, without_nan_keys(k_BTKH, v_BTKH), positions_BT)
            context = context._replace(segment_ids_BT=(positions_BT >= 0).astype(jnp.int32))
            out_BTNH = self.attend(q_BTNH, k_BTKH, v_BTKH, context, positions_BT)
        elif isinstance(cache, KVCache | RingCache):
            v_BTKH = without_nan_keys(k_BTKH, v_BTKH)
            cache, seen = cache.extend(k_BTKH, v_BTKH, positions_BT)
            out_BTNH = self.attend_cached(q_BTNH, *seen, context, positions_BT)
        else:
            out_BTNH = self.attend(q_BTNH, k_BTKH, v_BTKH, context, positions_BT)
        (out_BTNH,) = apply_hook(self, mixed=out_BTNH)
        for gate_BTNH in gate:
            out_BTNH = out_BTNH * jax.nn.sigmoid(gate_BTNH)
        return project_and_sum(self.o_proj, constrain(out_BTNH, "BTNH")), cache

    def attend(
        self, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, context: Context, positions_BT: Array
    ) -> Array:
        """Attends from each token to the tokens of its segment, BTNH, by a kernel or in blocks."""
        config, mask_spec = self.config.attention, MaskSpec.from_config(self.config, self.kind)
        kernel, has_bias, segments_BT = None, context.bias is not None, context.segment_ids_BT
        if not has_hook(self):  # a hook gets the scores, which kernels never hold all at once
            kernel = choose_kernel(config.kernel, q_BTNH.dtype, has_bias=has_bias)
            if kernel is None and not has_bias and splits_sequences(q_BTNH):
                kernel = partial(in_blocks, attend=attention, cut=query_blocks)
        if kernel is not None:
            given = self.scale, config.softcap, self.sink_scores
            call = Call(mask_spec, positions_BT, segments_BT, *given)
            return on_devices(kernel, q_BTNH, k_BTKH, v_BTKH, call)  # kernels name their output
        out_BTNH = self_attention(
            *(q_BTNH, k_BTKH, v_BTKH, positions_BT, segments_BT),
            mask_spec=mask_spec,
            bias=context.bias,
            attend=self.masked_attention,
            hooked_module=self if has_hook(self) else None,
        )
        return checkpoint_name(out_BTNH, ATTENDED)

    def attend_cached(
        self,
        q_BTNH: Array,
        k_BSKH: Array,
        v_BSKH: Array,
        keys_BS: Array,
        context: Context,
        positions_BT: Array,
    ) -> Array:
        """Attends from each token to those of the cache at positions `keys_BS`, BTNH, in blocks."""
        mask_spec, outs = MaskSpec.from_config(self.config, self.kind), []
        for own in query_blocks(q_BTNH.shape[1]):
            mask_BTS = mask_spec.mask(positions_BT[:, own], keys_BS)
            bias = None if context.bias is None else context.bias(positions_BT[:, own], keys_BS)
            given = q_BTNH[:, own], k_BSKH, v_BSKH, mask_BTS, bias
            outs.append(self.masked_attention(*given, is_clean=True))
        return jnp.concatenate(outs, axis=1)

    def masked_attention(self, *args: Any, **options: Any) -> Array:
        """Calls `attention` with the scale and the soft cap of the config, and with the sinks."""
        softcap, sinks_N = self.config.attention.softcap, self.sink_scores
        return attention(*args, scale=self.scale, softcap=softcap, sinks_N=sinks_N, **options)

    @property
    def scale(self) -> float:
        """The factor of the scores."""
        return self.config.attention.scale or self.config.head_dim**-0.5

    @property
    def sink_scores(self) -> Array | None:
        """The score of one more key for each head, N, in float32, or None."""
        return None if self.sinks is None else self.sinks[...].astype(jnp.float32)

    def normalize_and_rotate(self, x_BTNH: Array, norm: Norm | None, positions_BT: Array) -> Array:
        """Applies QK norm and RoPE, if the config has them, to queries or keys."""
        if norm is not None:
            x_BTNH = norm(x_BTNH)
        rotation = Rotation.from_config(self.config, self.kind)
        if rotation is None:
            return x_BTNH
        x_BTNH = apply_rope(x_BTNH, positions_BT, rotation)
        if self.config.attention.qk_norm == "after_rope":
            return normalize(x_BTNH, self.config.norms.eps).astype(x_BTNH.dtype)
        return x_BTNH

    def scale_by_temperature(self, q_BTNH: Array, positions_BT: Array) -> Array:
        """Scales queries by the position-dependent temperature, on layers that have one."""
        temperature = self.config.attention.temperature
        has_rope = Rotation.from_config(self.config, self.kind) is not None
        if temperature is None or (temperature.layers == "without_rope" and has_rope):
            return q_BTNH
        growth_BT = temperature_growth(temperature, positions_BT)
        return (q_BTNH * growth_BT[..., None, None]).astype(q_BTNH.dtype)


def attention(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    mask_BTS: Array,
    bias_BNTS: Array | None = None,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks_N: Array | None = None,
    is_clean: bool = False,
    hook: Hook = lambda name, x_BKGTS: x_BKGTS,
) -> Array:
    """Computes `softmax(scale * q k + bias) v` over the keys where the mask is True.

    Each key/value head serves G consecutive query heads. The softmax is in float32. A query with
    all keys masked gets the mean of v. A key of NaN makes NaN of the queries that see it alone.

    Args:
        q_BTNH: queries.
        k_BSKH: keys.
        v_BSKH: values.
        mask_BTS: whether a query sees a key; B may be 1.
        bias_BNTS: added to the scores; B may be 1.
        scale: factor of the scores. Default: 1 / sqrt(H).
        softcap: replaces scores by `softcap * tanh(scores / softcap)`, before the bias.
        sinks_N: the score of one more key for each head, whose value is zero.
        is_clean: whether `without_nan_keys` was applied before.
        hook: replaces scores and probabilities.

    Returns:
        The attention output, BTNH, as wide as the values.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    v_BSKH = v_BSKH if is_clean else without_nan_keys(k_BSKH, v_BSKH)
    einsum = partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores_BKGTS = einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH) * (scale or H**-0.5)
    if softcap is not None:
        scores_BKGTS = softcap * jnp.tanh(scores_BKGTS / softcap)
    if bias_BNTS is not None:
        scores_BKGTS += bias_BNTS.reshape(-1, K, N // K, *bias_BNTS.shape[2:])
    scores_BKGTS = hook("scores", jnp.where(mask_BTS[:, None, None], scores_BKGTS, LOWEST))
    probs_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1)
    if sinks_N is not None:
        sums_BKGT1 = jax.nn.logsumexp(scores_BKGTS, axis=-1, keepdims=True)
        probs_BKGTS *= jax.nn.sigmoid(sums_BKGT1 - sinks_N.reshape(K, -1, 1, 1))
    probs_BKGTS = hook("probs", probs_BKGTS).astype(v_BSKH.dtype)
    out_BTKGH = einsum("BKGTS,BSKH->BTKGH", probs_BKGTS, v_BSKH).astype(v_BSKH.dtype)
    return out_BTKGH.reshape(B, T, N, -1)


def self_attention(
    q_BTNH: Array,
    k_BTKH: Array,
    v_BTKH: Array,
    positions_BT: Array,
    segment_ids_BT: Array | None = None,
    *,
    mask_spec: MaskSpec,
    bias: Bias | None = None,
    attend: Callable[..., Array] = attention,
    hooked_module: nnx.Module | None = None,
) -> Array:
    """Attention of each token to the tokens of its segment that the mask allows, BTNH.

    Works in blocks of queries, each against only the keys within its reach: half the work of
    masking all T x T scores, or much less with a window. The backward pass recomputes
    probabilities and biases (Dao et al., 2022), so that none are stored.

    Args:
        q_BTNH: queries.
        k_BTKH: keys.
        v_BTKH: values.
        positions_BT: must increase within a segment; B may be 1.
        segment_ids_BT: tokens see only tokens with the same id. None: one segment.
        mask_spec: which positions a query sees.
        bias: added to the scores.
        attend: the attention function of a block, with the signature of `attention`.
        hooked_module: its hook gets the scores and probabilities of each block, over all keys.
    """
    T = q_BTNH.shape[1]

    def attend_block(
        q: Array, k: Array, v: Array, mask: Array, at: tuple[Array, Array], **hook: Hook
    ) -> Array:
        return attend(q, k, v, mask, None if bias is None else bias(*at), **hook)

    outs = []
    for own in query_blocks(T):
        seen = mask_spec.key_range(own.start, own.stop, T)
        at = positions_BT[:, own], positions_BT[:, seen]
        mask_BTS = mask_spec.mask(*at)
        if segment_ids_BT is not None:
            mask_BTS &= same_segment(segment_ids_BT[:, own], segment_ids_BT[:, seen])
        if hooked_module is None:
            attend_own = jax.checkpoint(attend_block)
        else:  # not checkpointed: a hook cannot record tracers
            attend_own = partial(attend_block, hook=partial(hook_block, hooked_module, seen, T))
        outs.append(attend_own(q_BTNH[:, own], k_BTKH[:, seen], v_BTKH[:, seen], mask_BTS, at))
    return jnp.concatenate(outs, axis=1)


def hook_block(module: nnx.Module, seen: slice, num_keys: int, name: str, x_BKGTS: Array) -> Array:
    """Calls the hook with a block's scores or probabilities, BTNS, padded to all keys.

    Args:
        module: has the hook.
        seen: the keys that the block covers.
        num_keys: the number of all keys.
        name: "scores" or "probs".
        x_BKGTS: the values for the keys in `seen`; those to use for them are returned.
    """
    beside = (seen.start, num_keys - seen.stop)
    unseen = LOWEST if name == "scores" else 0.0
    wide_BKGTS = jnp.pad(x_BKGTS, [(0, 0)] * 4 + [beside], constant_values=unseen)
    wide_BTKGS = jnp.moveaxis(wide_BKGTS, 3, 1)
    shown_BTNS = wide_BTKGS.reshape(*wide_BTKGS.shape[:2], -1, num_keys)
    (wide_BTNS,) = apply_hook(module, **{name: shown_BTNS})
    return jnp.moveaxis(wide_BTNS.reshape(wide_BTKGS.shape), 1, 3)[..., seen]


def query_blocks(T: int) -> Iterator[slice]:
    """Yields the blocks of queries that go through attention together."""
    size = max(MIN_BLOCK, -(-T // MAX_BLOCKS))
    return (slice(start, min(start + size, T)) for start in range(0, T, size))
