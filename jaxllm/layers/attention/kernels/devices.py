"""Kernels on a mesh: each device runs one on its own rows, heads and queries.

With the mesh axis `sequence`, a device has a part of each sequence (context parallelism). It
gathers the keys and values of all parts, which are small if queries share them in groups, and
keeps its own queries. For balance under a causal mask, devices exchange queries: cut into twice as
many parts as there are devices, device i computes the parts i and 2n - 1 - i (Llama Team, 2024).
"""

import functools
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.layers.attention.mask import same_segment
from jaxllm.layers.linear import ATTENDED
from jaxllm.sharding import multi_device_mesh, partition_spec

from .call import Apply, Call, repeat_kv, without_nan_keys

AXIS = "sequence"


def on_devices(kernel: Apply, q_BTNH: Array, k_BTKH: Array, v_BTKH: Array, call: Call) -> Array:
    """Computes self-attention, BTNH, with a kernel on every device of the mesh.

    Args:
        kernel: computes attention on one device.
        q_BTNH: queries.
        k_BTKH: keys. One that is NaN makes NaN of the queries that see it and of no others.
        v_BTKH: values, perhaps narrower than keys.
        call: its order and shard are not used.
    """
    if missing := k_BTKH.shape[-1] - v_BTKH.shape[-1]:  # kernels have values as wide as keys
        wide_BTKH = jnp.pad(v_BTKH, [(0, 0)] * 3 + [(0, missing)])
        return on_devices(kernel, q_BTNH, k_BTKH, wide_BTKH, call)[..., : v_BTKH.shape[-1]]
    v_BTKH = without_nan_keys(k_BTKH, v_BTKH)
    mesh = multi_device_mesh()
    if mesh is None:
        return kernel(q_BTNH, k_BTKH, v_BTKH, call._replace(order=orders(call, q_BTNH.shape[1], 1)))
    q_spec = partition_spec("BTNH", q_BTNH.shape, mesh.shape)
    own_shape = NamedSharding(mesh, q_spec).shard_shape(q_BTNH.shape)
    ways, shards = (q_BTNH.shape[axis] // own_shape[axis] for axis in (2, 1))
    # So often that devices with other query heads have key/value heads of theirs.
    n_rep = math.lcm(k_BTKH.shape[2], ways) // k_BTKH.shape[2]
    k_BTKH, v_BTKH = repeat_kv(k_BTKH, n_rep), repeat_kv(v_BTKH, n_rep)
    k_spec = partition_spec("BTKH", k_BTKH.shape, mesh.shape)
    order = orders(call, q_BTNH.shape[1], shards)
    given = call.positions_BS, call.segment_ids_BS, call.sinks_N
    rows = [PartitionSpec(None if x is None or x.shape[0] == 1 else q_spec[0]) for x in given[:2]]

    def local(
        q: Array, k: Array, v: Array, given: tuple[Array, Array | None, Array | None]
    ) -> Array:
        positions, ids, sinks = given
        own = call._replace(positions_BS=positions, segment_ids_BS=ids, sinks_N=sinks, order=order)
        if shards == 1:
            return kernel(q, k, v, own)
        k, v = (jax.lax.all_gather(x, AXIS, axis=1, tiled=True) for x in (k, v))
        own = own._replace(shard=jax.lax.axis_index(AXIS))
        return _in_place(kernel(_in_order(q, order), k, v, own), order)

    run = jax.shard_map(
        local,
        in_specs=(q_spec, k_spec, k_spec, (*rows, PartitionSpec(q_spec[2]))),
        out_specs=q_spec,
        check_vma=False,  # kernels do not say along which axes their outputs vary
    )
    return run(q_BTNH, k_BTKH, v_BTKH, given)


def splits_sequences(x_BTNH: Array) -> bool:
    """Whether the mesh in use splits T."""
    mesh = multi_device_mesh()
    return mesh is not None and partition_spec("BTNH", x_BTNH.shape, mesh.shape)[1] is not None


def in_blocks(
    q_BTNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    call: Call,
    *,
    attend: Callable[..., Array],
    cut: Callable[[int], Iterable[slice]],
) -> Array:
    """Computes self-attention, BTNH, by matmuls: what `on_devices` runs where there is no kernel.

    Each block attends to all keys: the order of queries is data, so none are known to be unseen.

    Args:
        q_BTNH: queries.
        k_BSKH: keys.
        v_BSKH: values.
        call: see `Call`.
        attend: computes attention under a mask.
        cut: divides T queries into blocks, whose scores are in memory at a time.
    """
    options = {"scale": call.scale, "softcap": call.softcap, "sinks_N": call.sinks_N}
    attend = jax.checkpoint(functools.partial(attend, **options))
    at_BS, ids_BS, outs = call.positions_BS, call.segments, []
    for own in cut(q_BTNH.shape[1]):
        index = call.indices[own]
        mask_BTS = call.mask_spec.mask(at_BS[:, index], at_BS)
        mask_BTS &= same_segment(ids_BS[:, index], ids_BS)
        outs.append(attend(q_BTNH[:, own], k_BSKH, v_BSKH, mask_BTS))
    return checkpoint_name(jnp.concatenate(outs, axis=1), ATTENDED)


def orders(call: Call, T: int, shards: int) -> np.ndarray:
    """Returns the indices of the queries that each shard computes, (shards, T / shards)."""
    parts = 2 * shards
    is_balanced = not call.mask_spec.causal or call.mask_spec.lookback is not None
    if shards == 1 or is_balanced or T % parts:
        return np.arange(T).reshape(shards, -1)
    own = np.arange(shards)
    # The order in which `_in_order` receives them.
    pairs = np.where(own % 2 == 0, (own, parts - 1 - own), (parts - 1 - own, own)).T
    return np.arange(T).reshape(parts, -1)[pairs].reshape(shards, -1)


def _routes(shards: int) -> list[list[tuple[int, int]]]:
    """Returns (from, to) of each device's first half of its queries, and of its second half."""
    destination = lambda part: min(part, 2 * shards - 1 - part)  # noqa: E731
    return [[(i, destination(2 * i + half)) for i in range(shards)] for half in range(2)]


def _is_natural(order: np.ndarray) -> bool:
    return bool(np.all(np.diff(order.reshape(-1)) == 1))


def _in_order(x_BTNH: Array, order: np.ndarray) -> Array:
    """Exchanges the halves of all devices' parts of a sequence, so that they are in an order."""
    if _is_natural(order):
        return x_BTNH
    halves = zip(jnp.split(x_BTNH, 2, axis=1), _routes(len(order)), strict=True)
    return jnp.concatenate([jax.lax.ppermute(x, AXIS, route) for x, route in halves], axis=1)


def _in_place(x_BTNH: Array, order: np.ndarray) -> Array:
    """Undoes `_in_order`."""
    if _is_natural(order):
        return x_BTNH
    halves = zip(jnp.split(x_BTNH, 2, axis=1), _routes(len(order)), strict=True)
    back = [jax.lax.ppermute(x, AXIS, [(to, start) for start, to in route]) for x, route in halves]
    return jnp.concatenate(back, axis=1)
