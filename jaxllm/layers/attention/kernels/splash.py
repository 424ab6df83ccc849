"""Self-attention on TPUs by jax's splash attention, which leaves out masked tiles."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from jaxllm.layers.attention.mask import MaskSpec
from jaxllm.layers.linear import ATTENDED

from .call import PADDING, Call, padded, round_up

LANES, TILE = 128, 512  # tokens: the least of a tile, and of the tiles of long sequences
CHUNKS = 1 << 12  # chunks per segment that fit beside the segment's id in one number


def splash_attention(
    q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, call: Call, *, interpret: bool = False
) -> Array:
    """Computes self-attention, BTNH, on a TPU; with `interpret`, anywhere and slowly.

    The kernel knows the order of tokens and their segments, not their positions. Since positions
    increase within a segment, that is the same but for windows, whose positions must increase by
    one, and chunks, of which a segment may have 4096: otherwise the output is NaN.
    """
    (B, T, N, _), S = q_BTNH.shape, k_BSKH.shape[1]
    rows, columns = (round_up(n, LANES if n <= TILE else TILE) for n in (T, S))
    ids_BS, is_right = _segments(call)
    segments = None
    if call.segment_ids_BS is not None or call.mask_spec.chunk or (rows, columns) != (T, S):
        sides = padded(ids_BS[:, call.indices], rows, PADDING), padded(ids_BS, columns, PADDING)
        segments = kernels.SegmentIds(*(jnp.broadcast_to(x, (B, x.shape[1])) for x in sides))
    scaled = (q_BTNH.astype(jnp.float32) * call.scale).astype(q_BTNH.dtype)
    arrays = padded(scaled, rows), padded(k_BSKH, columns), padded(v_BSKH, columns)
    kernel = _make_kernel(call, N, rows, columns, interpret)
    run = jax.vmap(kernel, in_axes=(0, 0, 0, None if segments is None else 0, None))
    out_BNTH = run(*(x.swapaxes(1, 2) for x in arrays), segments, call.sinks_N)
    return jnp.where(is_right, out_BNTH.swapaxes(1, 2)[:, :T].astype(q_BTNH.dtype), jnp.nan)


def _segments(call: Call) -> tuple[Array, Array]:
    """Returns ids of what the kernel separates, BS, and whether it sees each row right, B111."""
    at_BS, ids_BS, chunk = call.positions_BS, call.segments, call.mask_spec.chunk
    is_right = jnp.ones((1, 1), bool)
    if call.mask_spec.window is not None:
        is_right &= (jnp.diff(at_BS) == 1) | (jnp.diff(ids_BS) != 0)
        if call.segment_ids_BS is not None:
            is_right |= ids_BS[:, 1:] == 0  # padding
    if chunk is not None:
        is_right = jnp.all(is_right, 1, keepdims=True)
        fits_BS = (ids_BS >= 0) & (ids_BS < PADDING // CHUNKS) & (at_BS // chunk < CHUNKS)
        is_right &= fits_BS
        ids_BS = ids_BS * CHUNKS + at_BS // chunk
    return ids_BS, jnp.all(is_right, 1)[:, None, None, None]


def _make_kernel(call: Call, N: int, rows: int, columns: int, interpret: bool) -> Any:
    """Makes the kernel of N heads for the queries of `call.shard`.

    Args:
        call: the mask and the order of queries.
        N: number of heads.
        rows: number of queries of a shard, padding included.
        columns: number of keys, padding included.
        interpret: see `splash_attention`.
    """
    spec, (shards, T) = call.mask_spec, call.order.shape
    # A chunk is a segment of its own, and looks back less far than its size.
    spec = MaskSpec(spec.causal, spec.lookback if spec.causal else spec.window)
    mask: masks.Mask
    if spec == MaskSpec(causal=False):
        mask, shards = masks.FullMask((rows, columns)), 1
    else:
        padding = ((0, 0), (0, rows - T))
        order = np.pad(call.order.astype(np.int32), padding, constant_values=columns - 1)
        mask = OrderedMask(spec, order.reshape(-1), columns)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * N),
        block_sizes=_tiles(rows, columns),
        head_shards=1,
        q_seq_shards=shards,
        attn_logits_soft_cap=call.softcap,
        residual_checkpoint_name=ATTENDED,
        interpret=interpret,
    )
    if shards == 1:
        return kernel

    def own(x: Array) -> Array:
        axis = x.ndim > 1  # of queries; heads come before them
        size = x.shape[axis] // shards
        return jax.lax.dynamic_slice_in_dim(x, call.shard * size, size, int(axis))

    return jax.tree.map(own, kernel)


def _tiles(rows: int, columns: int) -> kernels.BlockSizes:
    queries, keys = (next(n for n in (512, 256, 128) if x % n == 0) for x in (rows, columns))
    return kernels.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_q_dq=queries,
        block_kv_dq=keys,
    )


class OrderedMask(masks.Mask):
    """The mask of queries in any order against all keys, by their places in the sequence.

    The kernel computes it with `mask_function` from `q_sequence`. Outside the kernel, whole tiles
    are decided by their bounds: element by element would take minutes for long sequences.
    """

    def __init__(self, spec: MaskSpec, order: np.ndarray, columns: int):
        self.spec, self.q_sequence, self.columns = spec, order, columns

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of queries and of keys."""
        return self.q_sequence.size, self.columns

    def mask_function(self, queries: Array, keys: Array) -> Array:
        """Returns whether queries see keys, element by element."""
        return self.spec.sees(queries, keys)

    def __getitem__(self, tile: Any) -> np.ndarray:
        rows, columns = (part.indices(n) for part, n in zip(tile, self.shape, strict=True))
        queries, first, last = self.q_sequence[slice(*rows)], columns[0], columns[1] - 1
        shape = queries.size, last + 1 - first
        low, high, window = queries.min(), queries.max(), self.spec.window
        if (self.spec.causal and high < first) or (window and low - last >= window):
            return _constant(shape, False)
        if not (self.spec.causal and low < last) and not (window and high - first >= window):
            return _constant(shape, True)
        found = np.ones(shape, bool)
        behind = queries[:, None] - np.arange(first, last + 1)
        if self.spec.causal:
            found &= behind >= 0
        return found & (behind < window) if window else found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OrderedMask):
            return NotImplemented
        same = self.spec == other.spec and self.shape == other.shape
        return same and np.array_equal(self.q_sequence, other.q_sequence)

    def __hash__(self) -> int:
        return hash((self.spec, self.shape, self.q_sequence.tobytes()))


@functools.lru_cache
def _constant(shape: tuple[int, int], value: bool) -> np.ndarray:
    return np.full(shape, value)
