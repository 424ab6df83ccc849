"""Lookup in an embedding table that is split over devices, without gathering the table."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from jaxllm.sharding import constrain, multi_device_mesh, partition_spec, spec_axes

Axes = tuple[str, ...]


def look_up(table_VD: Array, tokens_BT: Array, dtype: DTypeLike) -> Array:
    """Returns the rows of a table, BTD, in this dtype; NaN for tokens outside it.

    Where D is split over devices that have different tokens, each finds its part of D for the
    tokens of all of them, and they exchange those parts: a few activations move, and not the table.
    The gradient takes the same way back, and is added up in float32.
    """
    mesh = multi_device_mesh()
    if mesh is None:
        return _find(table_VD, tokens_BT, ()).astype(dtype)
    table, rows = (
        partition_spec(dims, x.shape, mesh.shape)
        for dims, x in (("VD", table_VD), ("BT", tokens_BT))
    )
    V_axes, D_axes = map(spec_axes, table)
    if not {*D_axes} <= {*spec_axes(*rows)}:  # such as one sequence for all devices
        return _find(constrain(table_VD, "V."), tokens_BT, ()).astype(dtype)

    def local(table_VD: Array, tokens_BT: Array) -> Array:
        tokens_S = tokens_BT.reshape(-1)
        if D_axes:
            tokens_S = jax.lax.all_gather(tokens_S, D_axes, tiled=True)
        x_SD = _find(table_VD, tokens_S, V_axes).astype(dtype)
        if V_axes:
            x_SD = jax.lax.psum(x_SD, V_axes)
        if D_axes:
            x_SD = jax.lax.all_to_all(x_SD, D_axes, 0, 1, tiled=True)
        return x_SD.reshape(*tokens_BT.shape, -1)

    return jax.shard_map(local, in_specs=(table, rows), out_specs=PartitionSpec(*rows, None))(
        table_VD, tokens_BT
    )


def _find(table_VD: Array, tokens: Array, axes: Axes) -> Array:
    """Returns the rows of the tokens in a device's part of V, and zeros for those of others."""
    own = table_VD.shape[0]
    first = jax.lax.axis_index(axes) * own if axes else 0
    total = own * (jax.lax.axis_size(axes) if axes else 1)
    place = tokens - first
    found = table_VD.at[place].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    is_outside = (tokens < 0) | (tokens >= total)
    return jnp.where(is_outside[..., None], jnp.nan, found)
