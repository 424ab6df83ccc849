"""The device mesh."""

import dataclasses
import math
import os
from typing import ClassVar

import jax
from jax.sharding import AxisType, Mesh

from jaxllm.errors import UserError
from jaxllm.sharding import MESH_AXES

THREADS_PER_DEVICE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How many ways each thing is split; the product is the number of devices."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    data: int = 1  # copies of the model, each with a part of the batch
    fsdp: int = 1  # parts of every parameter, and of the batch
    tensor: int = 1  # parts of the heads, the MLP and the vocabulary
    expert: int = 1  # parts of the experts, and of the batch where it divides

    def __post_init__(self) -> None:
        for name, size in dataclasses.asdict(self).items():
            if size < 1:
                raise UserError(f"mesh.{name}={size} is less than 1")


def use_virtual_devices(count: int) -> None:
    """Makes the CPU look like `count` devices. Call it before anything has used a device."""
    # A collective holds one thread for each device until all have come. XLA's pool has as many
    # threads as the machine has cores, and programs in flight would wait for each other forever.
    os.environ.setdefault("NPROC", str(THREADS_PER_DEVICE * count))
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def make_mesh(**sizes: int) -> Mesh:
    """The mesh of `make_mesh(fsdp=4, tensor=2)` over all devices; axes not named have size 1.

    Raises UserError for an unknown axis or another number of devices than there are.
    """
    if unknown := sizes.keys() - set(MESH_AXES):
        raise UserError(f"unknown mesh axis {', '.join(unknown)}; known are {', '.join(MESH_AXES)}")
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    needed, found = math.prod(shape), jax.device_count()
    if needed != found:
        named = " x ".join(f"{axis}={size}" for axis, size in sizes.items()) or "one device"
        hint = ""
        if jax.default_backend() == "cpu":
            threads = THREADS_PER_DEVICE * needed
            hint = f"; for virtual ones set JAX_NUM_CPU_DEVICES={needed} and NPROC={threads}"
        raise UserError(f"the mesh {named} needs {needed} devices, but there are {found}{hint}")
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
