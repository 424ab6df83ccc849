"""Experts on a mesh: each device sorts its own tokens, and rows go to where their experts are.

Written with `shard_map`: the partitioner would gather all that is to be sorted, and the experts.
No row is dropped: any one device has room for all of them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import AbstractMesh, PartitionSpec

from jaxllm.layers.trace import without_hooks
from jaxllm.sharding import DIMS, partition_spec

# Rows sorted by group, how many each group has, and the group of each: the rows afterwards.
ApplyGroups = Callable[[Array, Array, Array], Array]
NO_EXPERT = np.iinfo(np.int32).max


def multi_device_mesh() -> AbstractMesh | None:
    """The mesh in use, if it is of more than one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def shards_experts(mesh: AbstractMesh, num_experts: int) -> bool:
    """Whether the mesh's expert axis splits so many experts; otherwise every device has all."""
    return partition_spec("E", (num_experts,), mesh.shape)[0] is not None


def map_over_devices(
    mesh: AbstractMesh,
    apply: Callable[[Any, Array, Array, Array], Array],
    experts: Any,
    x_SD: Array,
    weights_Sk: Array,
    expert_Sk: Array,
) -> Array:
    """`apply` of its own experts and its own tokens on every device of the mesh, SD.

    The experts' F is split over `tensor`, and what `apply` returns is summed over it. The tokens
    that fill up the devices chose `NOBODY`.
    """
    graphdef, state = nnx.split(without_hooks(experts))
    variables = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    treedef = jax.tree.structure(state)
    dims = [variable.dims for variable in variables]
    specs = [partition_spec(v.dims, v.get_value().shape, mesh.shape) for v in variables]
    is_sum = any("tensor" in part for part in specs)
    axes = tuple(axis for axis in DIMS["B"] if mesh.shape.get(axis, 1) > 1)  # that split the tokens
    varying = (*axes, "tensor") if is_sum else axes
    S, split = x_SD.shape[0], PartitionSpec(axes)

    def local(arrays: list[Array], *tokens: Array) -> Array:
        own = [_prepare(*each, varying) for each in zip(arrays, dims, specs, strict=True)]
        merged = nnx.merge(graphdef, jax.tree.unflatten(treedef, own))
        out_SD = apply(merged, *(_vary(x, split, varying) for x in tokens))
        return jax.lax.psum(out_SD, "tensor") if is_sum else out_SD

    missing = -S % math.prod(mesh.shape[axis] for axis in axes)
    fill = lambda x, value: jnp.pad(x, ((0, missing), (0, 0)), constant_values=value)  # noqa: E731
    run = jax.shard_map(local, in_specs=(specs, split, split, split), out_specs=split)
    arrays = [variable.get_value() for variable in variables]
    return run(arrays, fill(x_SD, 0), fill(weights_Sk, 0), fill(expert_Sk, NO_EXPERT))[:S]


def _prepare(array: Array, dims: str, part: PartitionSpec, varying: tuple[str, ...]) -> Array:
    """A device's part of a parameter as its tokens need it: whole but for its E and its F."""
    for place, axes in enumerate(part):
        if axes == "fsdp":  # whose gradient is then scattered as it is summed
            array = jax.lax.all_gather(array, axes, axis=place, tiled=True)
    array = _vary(array, part, varying)
    if "tensor" in varying and "F" not in dims:  # a bias of the sum, which is to be added once
        array = jnp.where(jax.lax.axis_index("tensor") == 0, array, 0)
    return array


def _vary(x: Array, part: PartitionSpec, axes: tuple[str, ...]) -> Array:
    """An array that is split by `part`, as one that may differ along all of these mesh axes."""
    split = jax.tree.leaves(tuple(part))
    return jax.lax.pcast(x, tuple(axis for axis in axes if axis not in split), to="varying")


def group_by_device(expert: Array, num_own: int, *, has_overflow: bool) -> Array:
    """The group of each choice: groups are numbered device by device, those of no expert are last.

    A device has `num_own` experts and, if any, the overflow expert, the last of all, of which all
    have a copy: the rows of it stay where they are.
    """
    devices = jax.lax.axis_size("expert")
    size = num_own + has_overflow
    group = expert // num_own * size + expert % num_own
    if has_overflow:
        here = jax.lax.axis_index("expert") * size + num_own
        group = jnp.where(expert == devices * num_own, here, group)
    return jnp.where(expert == NO_EXPERT, devices * size, group)


def exchange_rows(run: ApplyGroups, room: int) -> ApplyGroups:
    """`run` of each group on the device that holds it; `room` is the most rows of one for another.

    Groups are numbered device by device, as many on each.
    """

    def exchanged(rows_MD: Array, counts: Array, _: Array) -> Array:
        counts_RG = counts.reshape(jax.lax.axis_size("expert"), -1)
        given_RG = _all_to_all(counts_RG)
        sizes_R, lengths = counts_RG.sum(1), (rows_MD.shape[0], room)
        came = send_rows(rows_MD, sizes_R, lengths)
        ends_RG = jnp.cumsum(given_RG, axis=1)  # of each device's groups; after them, room is left
        place = jnp.arange(room)
        group = jax.vmap(lambda ends: jnp.searchsorted(ends, place, side="right"))(ends_RG)
        group = group.reshape(-1)
        order = jnp.argsort(group)
        done = run(came[order], given_RG.sum(0), group[order])
        done = jnp.zeros_like(done).at[order].set(done, unique_indices=True)
        return return_rows(done, sizes_R, lengths)

    return exchanged


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def send_rows(rows_MD: Array, sizes_R: Array, lengths: tuple[int, int]) -> Array:
    """The first `sizes_R[0]` rows to device 0, those after them to device 1, ...: (R * room, D).

    What came from device s lies from s * room on; the rest is zeros. `lengths` are M and room.
    """
    padded = functools.partial(_send_padded, room=lengths[1])
    ragged = functools.partial(_send_ragged, room=lengths[1])
    return _by_platform(padded, ragged, rows_MD, sizes_R)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def return_rows(rows: Array, sizes_R: Array, lengths: tuple[int, int]) -> Array:
    """What `send_rows` sent, in its place again, MD; zeros for the rows that went nowhere."""
    padded = functools.partial(_bring_padded, count=lengths[0])
    ragged = functools.partial(_bring_ragged, count=lengths[0])
    return _by_platform(padded, ragged, rows, sizes_R)


# Each takes rows to where the other takes them from: each is the other's transpose.
send_rows.defvjp(
    lambda rows, sizes, lengths: (send_rows(rows, sizes, lengths), sizes),
    lambda lengths, sizes, dy: (return_rows(dy, sizes, lengths), None),
)
return_rows.defvjp(
    lambda rows, sizes, lengths: (return_rows(rows, sizes, lengths), sizes),
    lambda lengths, sizes, dy: (send_rows(dy, sizes, lengths), None),
)


def _by_platform(padded: Callable, ragged: Callable, *args: Array) -> Array:
    """XLA's CPU backend has no ragged_all_to_all.

    There every device sends every other as many rows as could be, most of them empty. An
    all_gather of the tokens would move fewer bytes, but be another algorithm than the one that
    accelerators run, and untested there.
    """
    return jax.lax.platform_dependent(*args, cpu=padded, default=ragged)


def _send_padded(rows_MD: Array, sizes_R: Array, *, room: int) -> Array:
    place = jnp.arange(room)
    taken = rows_MD.at[_starts(sizes_R)[:, None] + place].get(mode="clip")
    is_row = (place < sizes_R[:, None])[..., None]
    return _all_to_all(jnp.where(is_row, taken, 0)).reshape(-1, rows_MD.shape[1])


def _bring_padded(rows: Array, sizes_R: Array, *, count: int) -> Array:
    R, place = sizes_R.size, jnp.arange(count)
    back = _all_to_all(rows.reshape(R, -1, rows.shape[1]))
    device = jnp.searchsorted(jnp.cumsum(sizes_R), place, side="right")
    taken = back.at[device, place - _starts(sizes_R)[device]].get(mode="clip")
    return jnp.where((device < R)[:, None], taken, 0)


def _send_ragged(rows_MD: Array, sizes_R: Array, *, room: int) -> Array:
    R, D = sizes_R.size, rows_MD.shape[1]
    starts_R = _starts(sizes_R)
    here = jnp.full_like(starts_R, jax.lax.axis_index("expert") * room)
    empty = jnp.zeros_like(rows_MD, shape=(R * room, D))
    came_R = _all_to_all(sizes_R)
    return jax.lax.ragged_all_to_all(
        rows_MD, empty, starts_R, sizes_R, here, came_R, axis_name="expert"
    )


def _bring_ragged(rows: Array, sizes_R: Array, *, count: int) -> Array:
    R, D = sizes_R.size, rows.shape[1]
    lies_R = jnp.arange(R) * (rows.shape[0] // R)
    empty = jnp.zeros_like(rows, shape=(count, D))
    sent_R, there_R = _all_to_all(sizes_R), _all_to_all(_starts(sizes_R))
    return jax.lax.ragged_all_to_all(
        rows, empty, lies_R, sent_R, there_R, sizes_R, axis_name="expert"
    )


def _starts(sizes_R: Array) -> Array:
    """The place of the first row for each device."""
    return jnp.cumsum(sizes_R) - sizes_R


def _all_to_all(x: Array) -> Array:
    """Part d of the first dimension to device d; what came, in the devices' order."""
    return jax.lax.all_to_all(x, "expert", 0, 0, tiled=True)
