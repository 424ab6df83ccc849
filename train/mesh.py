"""Device meshes: axis sizes, construction, and virtual CPU devices."""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from typing import ClassVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxllm import THREADS_PER_DEVICE
from jaxllm.config.checks import check_fields
from jaxllm.errors import UserError, did_you_mean
from jaxllm.sharding import MESH_AXES


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The size of each mesh axis; their product is the number of devices."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    data: int = 1  # data parallelism: model replicas, each with a share of the batch
    fsdp: int = 1  # shards of every parameter, and of the batch
    tensor: int = 1  # shards of the heads, the MLP and the vocabulary
    expert: int = 1  # shards of the experts, and of the batch where it is divisible

    def __post_init__(self) -> None:
        check_fields(self, "mesh.")
        for name, size in dataclasses.asdict(self).items():
            if size < 1:
                raise UserError(f"mesh.{name}={size} is less than 1")


def use_virtual_devices(count: int) -> None:
    """Makes the CPU appear as `count` devices. Call this before JAX uses any device.

    Raises:
        UserError: JAX already uses other devices, which cannot be changed.
    """
    was_set = jax.config.jax_num_cpu_devices == count  # type: ignore[attr-defined]
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX refuses to change the number while it uses devices
        raise UserError(_too_late(count)) from None
    # A collective blocks one thread per device until all devices arrive. XLA's pool has one
    # thread per core, so programs in flight could deadlock. NPROC enlarges the pool.
    os.environ.setdefault("NPROC", str(THREADS_PER_DEVICE * count))
    jax.config.update("jax_platforms", "cpu")
    if was_set:  # then JAX accepted the update even if it uses other devices, such as a GPU
        devices = jax.local_devices()
        if len(devices) != count or devices[0].platform != "cpu":
            raise UserError(_too_late(count))


def _too_late(count: int) -> str:
    devices = jax.local_devices()
    return (
        f"use_virtual_devices({count}) is called too late: JAX already uses {len(devices)} "
        f"{devices[0].platform} devices. Call it before anything else that uses JAX, or "
        f"{_variables(count)} before Python starts"
    )


def _variables(count: int) -> str:
    """Says which environment variables make the CPU appear as this many devices."""
    return f"set JAX_NUM_CPU_DEVICES={count} and NPROC={THREADS_PER_DEVICE * count}"


def make_mesh(*, devices: Sequence[jax.Device] | None = None, **sizes: int) -> Mesh:
    """Creates a mesh, as in `make_mesh(fsdp=4, tensor=2)`.

    Args:
        devices: the mesh takes the first of these, as many as it needs. By default it must use
            every device there is.
        **sizes: the size of each axis; an axis that is not named has size 1.

    Raises:
        UserError: an axis is unknown or smaller than 1, or the sizes do not multiply to the
            number of devices.
    """
    if unknown := [axis for axis in sizes if axis not in MESH_AXES]:
        known = f"; the axes are {', '.join(MESH_AXES)}"
        hints = {axis: did_you_mean(axis, MESH_AXES) or known for axis in unknown}
        raise UserError("\n".join(f"unknown mesh axis {axis}{hints[axis]}" for axis in unknown))
    if small := [f"{axis}={size}" for axis, size in sizes.items() if size < 1]:
        raise UserError(f"mesh: {', '.join(small)} is less than 1")
    given = None if devices is None else [*np.ravel(np.asarray(devices, object))]
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    needed, found = math.prod(shape), len(jax.devices() if given is None else given)
    if needed > found or (needed < found and given is None):
        named = " x ".join(f"{axis}={size}" for axis, size in sizes.items()) or "one device"
        hint = ""
        if given is None and jax.default_backend() == "cpu":
            hint = f"; for virtual CPU devices {_variables(needed)}"
        raise UserError(f"the mesh {named} needs {needed} devices, but there are {found}{hint}")
    types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=given and given[:needed])


def layouts(axes: Sequence[str], num_devices: int) -> Iterator[tuple[tuple[str, int], ...]]:
    """Yields every factorization of the devices over the axes, those with fewest axes first."""
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    found = [
        tuple((axis, n) for axis, n in zip(axes, sizes, strict=True) if n > 1)
        for sizes in itertools.product(divisors, repeat=len(axes))
        if math.prod(sizes) == num_devices
    ]
    yield from sorted(found, key=len)
