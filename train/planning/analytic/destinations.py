"""Destinations of sums over devices: the sharding and dtype that each result is converted to."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from .placement import Axes, Shape, active, axes_by_dim
from .program import Op, Region, Value

_MOST_STEPS = 12  # operations between a sum and what decides its split


class Destinations:
    """Looks ahead in a region.

    Args:
        region: the program or the body of a loop.
        mesh_shape: the size of each mesh axis.
        param_axes: the split of the parameters, by shape, and of one layer where they are stacked.
    """

    def __init__(
        self, region: Region, mesh_shape: Mapping[str, int], param_axes: Mapping[Shape, Axes]
    ):
        self.mesh_shape, self.param_axes = mesh_shape, param_axes
        self.inputs = {id(value) for value in region.inputs}
        self.outputs = {id(value) for value in region.outputs}
        self.consumers: dict[int, list[Op]] = defaultdict(list)
        for op in region.ops:
            for value in op.inputs:
                self.consumers[id(value)].append(op)

    def dtype(self, value: Value) -> Any:
        """Returns the dtype of the only conversion that follows, which a compiler moves ahead."""
        users = self.consumers[id(value)]
        if len(users) == 1 and users[0].name == "convert_element_type":
            return min(value.dtype, users[0].outputs[0].dtype, key=lambda dtype: dtype.itemsize)
        return value.dtype

    def axes(self, value: Value) -> Axes | None:
        """Returns the split of the constraint, the loop's sum or the parameter that follows."""
        order = list(range(len(value.shape)))  # the dimension of the sum that stands in each place
        for _ in range(_MOST_STEPS):
            users = self.consumers[id(value)]
            user = users[0] if users and id(value) not in self.outputs else None
            if user is not None and user.name == "shard_map_exit":
                pairs = zip(user.inputs, user.outputs, strict=True)
                value = next(outer for inner, outer in pairs if inner is value)
                continue
            if user is None or not _keeps_shape(user, value):
                return _reordered(self.param_axes.get(value.shape), order)
            if user.name == "sharding_constraint":
                target = axes_by_dim(user.params["sharding"].spec, len(value.shape))
                return _reordered(active(target, self.mesh_shape), order)
            if (start := self._carried(user)) is not None:  # which keeps the split of its start
                return _reordered(start.axes, order)
            if user.name == "transpose":
                order = [order[i] for i in user.params["permutation"]]
            value = user.outputs[0]
        return None

    def _carried(self, user: Op) -> Value | None:
        """Returns what a loop carries, if a sum is added to it."""
        if user.name not in ("add", "add_any"):
            return None
        return next((value for value in user.inputs if id(value) in self.inputs), None)


def _keeps_shape(user: Op, value: Value) -> bool:
    if user.name in ("scan", "dot_general"):
        return False
    return user.name == "transpose" or user.outputs[0].shape == value.shape


def _reordered(axes: Axes | None, order: list[int]) -> Axes | None:
    """Undoes the transpositions between a sum and its destination."""
    if axes is None:
        return None
    return tuple(axes[order.index(i)] for i in range(len(order)))
