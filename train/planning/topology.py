"""Topologies: how many accelerators of which kind, and how fast groups of them exchange data."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxllm.distributed.devices import DEVICES, Device, find_device
from jaxllm.errors import UserError


class Topology(NamedTuple):
    """Accelerators of one kind: a TPU slice of some shape, or GPUs on hosts."""

    device: Device
    shape: tuple[int, ...]  # of a slice's torus; (number,) of GPUs

    @property
    def size(self) -> int:
        """The number of devices."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.device.name}:{'x'.join(map(str, self.shape))}"

    def bandwidth(self, axes: Sequence[str], mesh_shape: Mapping[str, int]) -> float:
        """Returns the bytes per second that a device receives from the others along mesh axes.

        On a TPU slice, mesh axes take the dimensions of the torus in proportion to the logarithm
        of their sizes, and a collective uses the links of its dimensions. GPUs of one host
        exchange over NVLink. Groups that span hosts are bounded by the network adapters of the
        devices that a host has in the group.

        Args:
            axes: the mesh axes along which the devices of a group differ.
            mesh_shape: the size of each mesh axis; the last axis varies fastest over devices.
        """
        group = math.prod(mesh_shape[axis] for axis in axes)
        if group <= 1:
            return math.inf
        if self.device.ndim:
            return self.device.link * math.log(group) / math.log(max(self.size, group))
        names = list(mesh_shape)
        inside, stride = 1, 1  # devices of the group on one host
        for name in reversed(names):
            if name in axes:
                inside *= min(mesh_shape[name], max(1, self.device.per_host // stride))
            stride *= mesh_shape[name]
        if inside >= group:
            return self.device.link
        return min(self.device.link, self.device.network * inside)


def parse_topology(text: str) -> Topology:
    """Parses a topology, such as `v5p:4x4x4` or `h100:64`.

    Raises:
        UserError: the device is unknown, or the shape is not one of its.
    """
    name, colon, sizes = text.partition(":")
    example = "v5p:4x4x4, v6e:8x8 or h100:8"
    if not colon or not re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})*", sizes):
        known = ", ".join(DEVICES)
        raise UserError(f"--topology {text!r} is not DEVICE:SHAPE, as in {example}; known: {known}")
    device, shape = find_device(name), tuple(map(int, sizes.split("x")))
    ndim = device.ndim or 1
    if len(shape) != ndim:
        what = f"the {ndim} sizes of its torus" if device.ndim else "the number of devices"
        raise UserError(f"--topology {text!r}: a shape of {name} is {what}, as in {example}")
    if not device.ndim and shape[0] > device.per_host and shape[0] % device.per_host:
        raise UserError(
            f"--topology {text!r}: {shape[0]} is not a multiple of the {device.per_host} devices "
            "of a host"
        )
    return Topology(device, shape)
