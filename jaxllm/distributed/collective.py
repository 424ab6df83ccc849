"""A small collective over all devices, timed: whether they reach each other, and how fast."""

from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MIB = 2**20


class Timed(NamedTuple):
    """The time of an all-reduce, the best of several."""

    num_bytes: int  # that each device has and gets
    num_devices: int
    seconds: float

    @property
    def bus_bandwidth(self) -> float:
        """Bytes per second that each link carries: `2 (n - 1) / n * bytes / seconds`.

        The convention of nccl-tests, by which the number does not depend on the number of devices.
        """
        n = self.num_devices
        return 2 * (n - 1) / n * self.num_bytes / self.seconds


def time_all_reduce(num_bytes: int = 16 * MIB, repeats: int = 5) -> Timed:
    """Adds up an array of every device on all of them. All processes must call this.

    Args:
        num_bytes: float32 numbers of this many bytes are on each device.
        repeats: the number of timed all-reduces, after two that are not.

    Raises:
        RuntimeError: the sum is wrong.
    """
    devices = np.array(jax.devices())
    mesh = Mesh(devices, ("device",), axis_types=(AxisType.Auto,))
    n, length = devices.size, max(num_bytes // 4, 1)
    sharded = NamedSharding(mesh, PartitionSpec("device"))
    replicated = NamedSharding(mesh, PartitionSpec())

    def part(index: Any) -> np.ndarray:
        return np.full((1, length), (index[0].start or 0) + 1, np.float32)

    x = jax.make_array_from_callback((n, length), sharded, part)
    add = jax.jit(lambda x: jnp.sum(x, axis=0), out_shardings=replicated)
    times = []
    for _ in range(repeats + 2):
        start = perf_counter()
        total = jax.block_until_ready(add(x))
        times.append(perf_counter() - start)
    found, expected = float(total.addressable_data(0)[0]), n * (n + 1) / 2
    if found != expected:
        raise RuntimeError(f"an all-reduce over {n} devices gave {found}, not {expected}")
    return Timed(length * 4, n, min(times[2:]))
