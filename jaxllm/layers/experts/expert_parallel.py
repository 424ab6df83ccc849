"""Expert parallelism: each device sorts its own tokens and sends them to their experts' devices.

Written with `shard_map`, since XLA's partitioner would gather both the tokens to be sorted and the
experts. No token is dropped: each device has room for all of them.
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
from jax.typing import DTypeLike

from jaxllm.config import ReduceDtype
from jaxllm.layers.gather import gather_shards, scatter_sum
from jaxllm.layers.hooks import without_hooks
from jaxllm.sharding import DIMS, partition_spec, spec_axes

# Maps (arrays of rows sorted by group, number of rows per group) to the new rows.
ApplyGroups = Callable[[tuple[Array, ...], Array], Array]
NO_EXPERT = np.iinfo(np.int32).max  # choice of the padding that fills up devices


def shards_experts(mesh: AbstractMesh, num_experts: int) -> bool:
    """Whether the mesh splits this many experts; otherwise every device has all of them."""
    return partition_spec("E", (num_experts,), mesh.shape)[0] is not None


def map_over_devices(
    mesh: AbstractMesh,
    apply: Callable[[Any, Array, Array, Array], Array],
    experts: Any,
    x_SD: Array,
    weights_Sk: Array,
    expert_Sk: Array,
    reduce_dtype: ReduceDtype = "float32",
) -> Array:
    """Runs `apply` on every device with its own experts and its own tokens.

    The experts' F is split over the mesh axis `tensor`, over which the results are summed. Tokens
    are padded to fill all devices; the padding chooses `NO_EXPERT`.

    Args:
        mesh: of more than one device.
        apply: maps experts, tokens SD, weights Sk and choices Sk to outputs SD.
        experts: a pytree of modules.
        x_SD: S tokens.
        weights_Sk: weights of each token's k choices.
        expert_Sk: the chosen experts.
        reduce_dtype: in which devices sum the gradients of kernels.

    Returns:
        The outputs of all tokens, SD.
    """
    graphdef, state = nnx.split(without_hooks(experts))
    variables = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    treedef = jax.tree.structure(state)
    dims = [variable.dims for variable in variables]
    specs = [partition_spec(v.dims, v.get_value().shape, mesh.shape) for v in variables]
    is_sum = any("tensor" in part for part in specs)
    split_by = (*DIMS["B"], *DIMS["T"])
    axes = tuple(axis for axis in split_by if mesh.shape.get(axis, 1) > 1)  # split the tokens
    varying = (*axes, "tensor") if is_sum else axes
    S, split = x_SD.shape[0], PartitionSpec(axes)
    prepare = functools.partial(_prepare, varying, x_SD.dtype, reduce_dtype)

    def local(arrays: list[Array], *tokens: Array) -> Array:
        own = list(map(prepare, arrays, dims, specs))
        merged = nnx.merge(graphdef, jax.tree.unflatten(treedef, own))
        out_SD = apply(merged, *(_vary(x, split, varying) for x in tokens))
        return jax.lax.psum(out_SD, "tensor") if is_sum else out_SD

    missing = -S % math.prod(mesh.shape[axis] for axis in axes)
    fill = lambda x, value: jnp.pad(x, ((0, missing), (0, 0)), constant_values=value)  # noqa: E731
    run = jax.shard_map(local, in_specs=(specs, split, split, split), out_specs=split)
    arrays = [variable.get_value() for variable in variables]
    return run(arrays, fill(x_SD, 0), fill(weights_Sk, 0), fill(expert_Sk, NO_EXPERT))[:S]


def _prepare(
    varying: tuple[str, ...],
    dtype: DTypeLike,
    reduce_dtype: ReduceDtype,
    array: Array,
    dims: str,
    part: PartitionSpec,
) -> Array:
    """Gathers a device's part of a parameter along D, so that only E and F remain sharded."""
    is_kernel = {*"DF"} <= {*dims}
    reduced: ReduceDtype = reduce_dtype if is_kernel else "float32"
    array = copy_to(array, _unsplit(part, varying), reduced)
    for place, (letter, axes) in enumerate(zip(dims, part, strict=True)):
        if letter == "D" and axes:
            array = gather_rounded(array, spec_axes(axes), place, dtype, reduced)
    if "tensor" in varying and "F" not in dims:  # an output bias, which the sum must add once
        array = jnp.where(jax.lax.axis_index("tensor") == 0, array, 0)
    return array


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def gather_rounded(
    x: Array,
    axes: tuple[str, ...],
    place: int,
    dtype: DTypeLike,
    reduce_dtype: ReduceDtype = "float32",
) -> Array:
    """Gathers an array along dimension `place`, rounded to a dtype that devices compute in.

    The result has the array's own dtype, and so has its gradient, which is summed in another.
    """
    return gather_shards(x.astype(dtype), place, axes).astype(x.dtype)


gather_rounded.defvjp(
    lambda x, *how: (gather_rounded(x, *how), None),
    lambda axes, place, dtype, reduce_dtype, _, dx: (
        scatter_sum(dx.astype(reduce_dtype), place, axes).astype(dx.dtype),
    ),
)


def _vary(x: Array, part: PartitionSpec, axes: tuple[str, ...]) -> Array:
    """Marks an array that is sharded by `part` as varying along all of these mesh axes."""
    return jax.lax.pcast(x, _unsplit(part, axes), to="varying")


def _unsplit(part: PartitionSpec, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Returns those of the mesh axes along which every device has the same."""
    return tuple(axis for axis in axes if axis not in jax.tree.leaves(tuple(part)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def copy_to(x: Array, axes: tuple[str, ...], reduce_dtype: ReduceDtype) -> Array:
    """Marks an array as varying along mesh axes, over which its gradient is summed in a dtype."""
    return jax.lax.pcast(x, axes, to="varying")


copy_to.defvjp(
    lambda x, *how: (copy_to(x, *how), None),
    lambda axes, reduce_dtype, _, dx: (
        jax.lax.psum(dx.astype(reduce_dtype), axes).astype(dx.dtype),
    ),
)


def group_by_device(expert: Array, num_own: int, *, has_overflow: bool) -> Array:
    """Returns the group of each choice; groups are numbered device by device.

    A device has `num_own` experts and, with `has_overflow`, a copy of the overflow expert as its
    last group; rows of the overflow expert stay on their device. `NO_EXPERT` gets the group after
    all others.
    """
    devices = jax.lax.axis_size("expert")
    size = num_own + has_overflow
    group = expert // num_own * size + expert % num_own
    if has_overflow:
        here = jax.lax.axis_index("expert") * size + num_own
        group = jnp.where(expert == devices * num_own, here, group)
    return jnp.where(expert == NO_EXPERT, devices * size, group)


def exchange_rows(run: ApplyGroups, room: int) -> ApplyGroups:
    """Returns a function that runs each group on the device that holds it.

    Groups are numbered device by device, with the same number on each.

    Args:
        run: processes the rows of a device's own groups.
        room: the most rows that one device may send to another.
    """

    def exchanged(rows: tuple[Array, ...], counts: Array) -> Array:
        counts_RG = counts.reshape(jax.lax.axis_size("expert"), -1)
        given_RG = _all_to_all(counts_RG)
        sizes_R, lengths = counts_RG.sum(1), (rows[0].shape[0], room)
        came = [send_rows(x, sizes_R, lengths) for x in rows]
        ends_RG = jnp.cumsum(given_RG, axis=1)  # ends of each device's groups within its room
        place = jnp.arange(room)
        group = jax.vmap(lambda ends: jnp.searchsorted(ends, place, side="right"))(ends_RG)
        order = jnp.argsort(group.reshape(-1))
        done = run(tuple(x[order] for x in came), given_RG.sum(0))
        done = jnp.zeros_like(done).at[order].set(done, unique_indices=True)
        return return_rows(done, sizes_R, lengths)

    return exchanged


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def send_rows(rows_MD: Array, sizes_R: Array, lengths: tuple[int, int]) -> Array:
    """Sends the first `sizes_R[0]` rows to device 0, the next `sizes_R[1]` to device 1, and so on.

    `lengths` are (M, room).

    Returns:
        The received rows, (R * room, D). Rows from device s begin at s * room; the rest is zeros.
    """
    padded = functools.partial(_send_padded, room=lengths[1])
    ragged = functools.partial(_send_ragged, room=lengths[1])
    return _by_platform(padded, ragged, rows_MD, sizes_R)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def return_rows(rows: Array, sizes_R: Array, lengths: tuple[int, int]) -> Array:
    """Undoes `send_rows`: returns rows to their places, MD; rows that were not sent are zeros."""
    padded = functools.partial(_bring_padded, count=lengths[0])
    ragged = functools.partial(_bring_ragged, count=lengths[0])
    return _by_platform(padded, ragged, rows, sizes_R)


# Each moves rows to where the other takes them from, so each is the transpose of the other.
send_rows.defvjp(
    lambda rows, sizes, lengths: (send_rows(rows, sizes, lengths), sizes),
    lambda lengths, sizes, dy: (return_rows(dy, sizes, lengths), None),
)
return_rows.defvjp(
    lambda rows, sizes, lengths: (return_rows(rows, sizes, lengths), sizes),
    lambda lengths, sizes, dy: (send_rows(dy, sizes, lengths), None),
)


def _by_platform(padded: Callable, ragged: Callable, *args: Array) -> Array:
    """Chooses the exchange by platform, since XLA's CPU backend has no ragged_all_to_all.

    On CPU, every device sends every other the largest possible number of rows, most of them empty.
    An all_gather of the tokens would move fewer bytes, but would leave the algorithm that runs on
    accelerators untested.
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
    """Returns the index of the first row for each device."""
    return jnp.cumsum(sizes_R) - sizes_R


def _all_to_all(x: Array) -> Array:
    """Sends part d of the first dimension to device d; returns the received parts by device."""
    return jax.lax.all_to_all(x, "expert", 0, 0, tiled=True)
