"""Device shards of an array as boxes, and the ranges of a rule's axes in them."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property

import jax
from jax.sharding import Sharding

from jaxllm.interop.rules.axis_ranges import Ranges, Sizes, find_box, overlap, regions
from jaxllm.interop.rules.boxes import Box, Range, box_shape, relative, slices
from jaxllm.interop.rules.pattern import Side


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
    """One box of an array, and the devices of this process that hold it."""

    side: Side
    sizes: Sizes
    box: Box
    devices: Sequence[jax.Device]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the box."""
        return box_shape(self.box)

    @cached_property
    def regions(self) -> list[Ranges]:
        """The box as ranges of the axes, each contiguous in every dimension."""
        return list(regions(self.side.dims, self.box, self.sizes))

    def overlaps(self, ranges: Ranges) -> Iterator[tuple[Ranges, Ranges]]:
        """Yields each region that intersects `ranges`, and the intersection."""
        for region in self.regions:
            if (common := overlap(region, ranges)) is not None:
                yield region, common

    def locate(self, ranges: Ranges) -> tuple[slice, ...]:
        """Returns where `ranges`, contiguous in every dimension, lie in the box."""
        return slices(relative(find_box(self.side.dims, ranges, self.sizes), self.box))

    def contiguous(self, ranges: Ranges) -> Iterator[Ranges]:
        """Splits `ranges` into ranges that are contiguous in every dimension."""
        for dim in self.side.dims:
            wide = [axis for axis in dim if ranges[axis][1] - ranges[axis][0] > 1]
            inner = dim[dim.index(wide[0]) + 1 :] if wide else ()
            if any(ranges[axis] != (0, self.sizes[axis]) for axis in inner):
                for position in range(*ranges[wide[0]]):
                    yield from self.contiguous({**ranges, wide[0]: (position, position + 1)})
                return
        yield ranges


def list_shards(side: Side, sizes: Sizes, sharding: Sharding) -> list[Shard]:
    """Returns this process's shards of an array; a replicated shard is listed once."""
    shape = side.shape(sizes)
    holders: dict[tuple[Range, ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        parts = zip(index or (), shape, strict=True)
        box = tuple(part.indices(size)[:2] for part, size in parts)
        holders.setdefault(box, []).append(device)
    return [Shard(side, sizes, box, devices) for box, devices in holders.items()]
