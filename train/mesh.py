"""Device meshes: axis sizes, construction, and virtual CPU devices."""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxllm import THREADS_PER_DEVICE
from jaxllm.config.checks import check_fields
from jaxllm.errors import UserError, did_you_mean
from jaxllm.sharding import MESH_AXES


def _check_sizes(sizes: Mapping[str, int], prefix: str) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{prefix}{name}={size} is less than 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlicesConfig:
    """How many slices each mesh axis spans, over the network of the data center."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    data: int = 1
    fsdp: int = 1
    sequence: int = 1
    tensor: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "mesh.dcn.")
        _check_sizes(dataclasses.asdict(self), "mesh.dcn.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The size of each mesh axis; their product is the number of devices.

    One of them may be -1: as many as there are devices for.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    data: int = 1  # data parallelism: model replicas, each with a share of the batch
    fsdp: int = 1  # shards of every parameter, and of the batch
    sequence: int = 1  # shards of each sequence, and of every parameter
    tensor: int = 1  # shards of the heads, the MLP and the vocabulary
    expert: int = 1  # shards of the experts, and of the batch where it is divisible
    dcn: SlicesConfig = SlicesConfig()  # the part of each axis that lies between slices
    # Whether `tensor` splits the tokens of norms and of the residual stream, between sublayers
    # (Korthikanti et al., 2022): less memory, and more bytes moved where layers are recomputed.
    sequence_parallel: bool = False

    @property
    def sizes(self) -> dict[str, Any]:
        """The arguments of `make_mesh`."""
        return {axis: getattr(self, axis) for axis in MESH_AXES} | {
            "dcn": dataclasses.asdict(self.dcn)
        }

    def __post_init__(self) -> None:
        check_fields(self, "mesh.")
        sizes = {axis: self.sizes[axis] for axis in MESH_AXES}
        _check_sizes({axis: size for axis, size in sizes.items() if size != -1}, "mesh.")
        if [*sizes.values()].count(-1) > 1:
            raise UserError("more than one axis of mesh is -1")


def fill_sizes(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Returns the sizes of mesh axes with the one that is -1, if any, filled in.

    Args:
        sizes: by axis.
        count: the number of devices.

    Raises:
        UserError: more than one is -1, or the others do not divide the number of devices.
    """
    free = [axis for axis, size in sizes.items() if size == -1]
    if not free:
        return dict(sizes)
    if len(free) > 1:
        raise UserError(f"mesh: {' and '.join(free)} are -1; only one axis may be")
    others = math.prod(size for size in sizes.values() if size != -1)
    if count % others or not count:
        raise UserError(
            f"mesh: {free[0]}=-1 stands for the devices that remain, but {count} devices are not "
            f"divisible by the {others} of the other axes"
        )
    return {**sizes, free[0]: count // others}


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


def make_mesh(
    *,
    devices: Sequence[jax.Device] | None = None,
    dcn: Mapping[str, int] | None = None,
    **sizes: int,
) -> Mesh:
    """Creates a mesh, as in `make_mesh(fsdp=4, tensor=2)`.

    Args:
        devices: the mesh takes the first of these, as many as it needs. By default it must use
            every device there is.
        dcn: how many slices an axis spans, of its size: `make_mesh(data=2, fsdp=16,
            dcn={"data": 2})` is for two slices of 16 devices. Where devices know no slices, those
            of a process are one.
        **sizes: the size of each axis; an axis that is not named has size 1, one of -1 takes the
            devices that remain.

    Raises:
        UserError: an axis is unknown or smaller than 1, the sizes do not multiply to the number of
            devices, or `dcn` does not divide them or does not fit the slices.
    """
    if unknown := [axis for axis in sizes if axis not in MESH_AXES]:
        known = f"; the axes are {', '.join(MESH_AXES)}"
        hints = {axis: did_you_mean(axis, MESH_AXES) or known for axis in unknown}
        raise UserError("\n".join(f"unknown mesh axis {axis}{hints[axis]}" for axis in unknown))
    if small := [f"{axis}={size}" for axis, size in sizes.items() if size < 1 and size != -1]:
        raise UserError(f"mesh: {', '.join(small)} is less than 1")
    given = None if devices is None else [*np.ravel(np.asarray(devices, object))]
    found = len(jax.devices() if given is None else given)
    sizes = fill_sizes(sizes, found)
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    needed = math.prod(shape)
    if needed > found or (needed < found and given is None):
        named = " x ".join(f"{axis}={size}" for axis, size in sizes.items()) or "one device"
        hint = ""
        if given is None and jax.default_backend() == "cpu":
            hint = f"; for virtual CPU devices {_variables(needed)}"
        raise UserError(f"the mesh {named} needs {needed} devices, but there are {found}{hint}")
    types = (AxisType.Auto,) * len(MESH_AXES)
    chosen = given and given[:needed]
    slices = [(dcn or {}).get(axis, 1) for axis in MESH_AXES]
    if math.prod(slices) == 1:
        return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=chosen)
    return Mesh(_over_slices(shape, slices, chosen or jax.devices()), MESH_AXES, axis_types=types)


def _over_slices(
    shape: Sequence[int], slices: Sequence[int], devices: Sequence[jax.Device]
) -> np.ndarray:
    """Arranges devices so that each axis changes slice as seldom as it can."""
    for axis, size, count in zip(MESH_AXES, shape, slices, strict=True):
        if size % count:
            raise UserError(f"mesh: {axis}={size} is not divisible by dcn.{axis}={count} slices")
    inner = [size // count for size, count in zip(shape, slices, strict=True)]
    by_process = not hasattr(devices[0], "slice_index")
    try:
        return mesh_utils.create_hybrid_device_mesh(
            inner, slices, devices, process_is_granule=by_process
        )
    except ValueError as error:
        what = "processes, which count as slices" if by_process else "slices"
        key = "process_index" if by_process else "slice_index"
        found = len({getattr(device, key) for device in devices})
        raise UserError(
            f"mesh.dcn needs {math.prod(slices)} slices of {math.prod(inner)} devices, but there "
            f"are {len(devices)} devices in {found} {what}"
        ) from error


def layouts(axes: Sequence[str], num_devices: int) -> Iterator[tuple[tuple[str, int], ...]]:
    """Yields every factorization of the devices over the axes, those with fewest axes first."""
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    found = [
        tuple((axis, n) for axis, n in zip(axes, sizes, strict=True) if n > 1)
        for sizes in itertools.product(divisors, repeat=len(axes))
        if math.prod(sizes) == num_devices
    ]
    yield from sorted(found, key=len)
