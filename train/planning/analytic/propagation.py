"""Sharding propagation: how a partitioner splits each operation, and the collectives this needs.

Starts from the shardings of the state, the batch and the constraints in the program. An operation
keeps the split of its inputs where it can; where two dimensions claim the same mesh axis,
activations win over parameters, which are gathered (as FSDP does), and larger arrays over smaller
ones. Sums over split dimensions are reduced at once: scattered where a constraint, or the parameter
that a gradient belongs to, is split by the same axes.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxllm.train.planning.collectives import Collective, share, total_by_kind

from .destinations import Destinations
from .dims import DimLabels, dim_labels
from .placement import Axes, Shape, active, axes_by_dim
from .program import VIEWS, Op, Region, Value, local_bytes

# Collectives that a program states itself, inside shard_map.
STATED = {
    **dict.fromkeys(("psum", "psum_invariant", "psum2", "pmax", "pmin"), "all-reduce"),
    **dict.fromkeys(("all_gather", "all_gather_invariant"), "all-gather"),
    **dict.fromkeys(("reduce_scatter", "psum_scatter"), "reduce-scatter"),
    "all_to_all": "all-to-all",
    "ragged_all_to_all": "ragged-all-to-all",
    **dict.fromkeys(("ppermute", "collective_permute"), "collective-permute"),
}
HLO_DTYPES = {
    "float32": "f32",
    "bfloat16": "bf16",
    "float16": "f16",
    "int32": "s32",
    "bool": "pred",
}


class Propagation:
    """Splits a program over a mesh.

    Args:
        mesh_shape: the size of each mesh axis.
        params: the parameters: values whose gradients are split as they are.
    """

    def __init__(self, mesh_shape: Mapping[str, int], params: Sequence[Value]):
        self.mesh_shape = dict(mesh_shape)
        self.params = {id(value) for value in params}
        self.param_axes: dict[Shape, Axes] = {}
        for value in params:
            self.param_axes[value.shape] = value.axes
            if value.shape:  # one layer of a stack
                self.param_axes.setdefault(value.shape[1:], value.axes[1:])

    def run(self, region: Region) -> Region:
        """Returns the program with its collectives as operations of their own, as in HLO."""
        return _Pass(self, region).run()

    def size(self, axes: Sequence[str]) -> int:
        """The number of devices along some mesh axes."""
        return math.prod(self.mesh_shape[axis] for axis in axes)


class _Pass:
    """One pass over a region."""

    def __init__(self, plan: Propagation, region: Region):
        self.plan, self.region = plan, region
        self.ops: list[Op] = []
        self.memo: dict[Any, Value] = {}
        self.ahead = Destinations(region, plan.mesh_shape, plan.param_axes)

    def run(self) -> Region:
        for op in self.region.ops:
            if op.name == "sharding_constraint":
                target = axes_by_dim(op.params["sharding"].spec, len(op.inputs[0].shape))
                self.alias(op.outputs[0], self.reshard(op.inputs[0], self.active(target)))
            elif op.name == "shard_map_enter":
                self.enter(op)
            elif op.name == "shard_map_exit":
                self.leave(op)
            elif op.name in STATED:
                self.stated(op)
            elif op.body is not None:
                self.loop(op)
            else:
                self.partition(op)
        return Region(self.region.inputs, self.ops, self.region.outputs)

    def active(self, axes: Axes) -> Axes:
        return active(axes, self.plan.mesh_shape)

    def alias(self, output: Value, value: Value) -> None:
        """Makes an output the same array as a value."""
        output.axes, output.root, output.is_free = value.axes, value, value.is_free
        self.ops.append(Op("alias", [value], [output], {}))

    def partition(self, op: Op) -> None:
        """Splits one operation by the labels of its dimensions."""
        labels = dim_labels(op)
        claims = self.claims(op, labels)
        inputs = [
            self.reshard(value, tuple(claims.get(x, ()) if x is not None else () for x in names))
            for value, names in zip(op.inputs, labels.inputs, strict=True)
        ]
        kept = {x for names in labels.outputs for x in names}
        summed = [axis for x, axes in claims.items() if x not in kept for axis in axes]
        outputs = []
        for value, names in zip(op.outputs, labels.outputs, strict=True):
            value.axes = tuple(claims.get(x, ()) if x is not None else () for x in names)
            value.is_free = all(v.is_free for v in op.inputs)
            if op.name in VIEWS:
                value.root = inputs[0]
            part = value
            if summed and not value.is_free:
                part = Value(value.shape, value.dtype, value.axes)
            outputs.append(part)
        self.ops.append(Op(op.name, inputs, outputs, op.params))
        for part, value in zip(outputs, op.outputs, strict=True):
            if part is not value:
                self.reduce(part, value, summed)

    def claims(self, op: Op, labels: DimLabels) -> dict[object, tuple[str, ...]]:
        """Decides which mesh axes split each label; no axis splits two."""
        found: dict[object, tuple[str, ...]] = {}
        used: set[str] = set()
        order = sorted(range(len(op.inputs)), key=lambda i: self.priority(op.inputs[i]))
        for i in order:
            value = op.inputs[i]
            if value.is_free:
                continue
            for label, axes in zip(labels.inputs[i], value.axes, strict=True):
                own = tuple(axis for axis in axes if axis not in used)
                if label is None or not own or label in found:
                    continue
                found[label] = own
                used.update(own)
        return found

    def priority(self, value: Value) -> tuple[bool, float]:
        is_param = id(value.source) in self.plan.params
        return is_param, -math.prod(value.shape) * value.dtype.itemsize

    def reshard(self, value: Value, target: Axes) -> Value:
        """Returns a value as the target splits it, with the collective that this takes."""
        if value.axes == target or not value.shape:
            return value
        key = (id(value.source), value.shape, value.dtype, target)
        if value.is_free:
            return Value(value.shape, value.dtype, target, is_free=True)
        if key in self.memo:
            return self.memo[key]
        before = {axis for part in value.axes for axis in part}
        after = {axis for part in target for axis in part}
        result = Value(value.shape, value.dtype, target, root=value)
        gone = [axis for axis in self.plan.mesh_shape if axis in before - after]
        shifted = [
            axis
            for axis in self.plan.mesh_shape
            if axis in before & after
            and any((axis in a) != (axis in b) for a, b in zip(value.axes, target, strict=True))
        ]
        if shifted:
            self.collective(
                "all-to-all", shifted, value, result, local_bytes(value, self.plan.mesh_shape)
            )
        elif gone:
            result.root = None if id(value.source) not in self.plan.params else value
            self.collective(
                "all-gather", gone, value, result, local_bytes(result, self.plan.mesh_shape)
            )
        else:
            self.ops.append(Op("alias", [value], [result], {}))
        self.memo[key] = result
        return result

    def reduce(self, part: Value, value: Value, summed: list[str]) -> None:
        """Adds up the partial sums of devices, into parts where the result will be split."""
        target = self.ahead.axes(value)
        size = local_bytes(part, self.plan.mesh_shape)
        dtype = self.ahead.dtype(value)
        size = size * dtype.itemsize / part.dtype.itemsize
        if target is not None:
            taken = {axis for axes in value.axes for axis in axes}
            scattered = tuple(
                (*own, *(a for a in want if a in summed and a not in taken))
                for own, want in zip(value.axes, target, strict=True)
            )
            over = [axis for axes in scattered for axis in axes if axis in summed]
            if over:
                value.axes = scattered
                left = [axis for axis in summed if axis not in over]
                if left:
                    self.collective(
                        "all-reduce", left, part, value, size / self.plan.size(over), dtype
                    )
                self.collective("reduce-scatter", over, part, value, size, dtype)
                return
        self.collective("all-reduce", summed, part, value, size, dtype)

    def collective(
        self,
        kind: str,
        axes: Sequence[str],
        value: Value,
        result: Value,
        size: float,
        dtype: Any = None,
    ) -> None:
        moved = size * share(kind, self.plan.size(axes))
        name = (dtype or value.dtype).name
        params = {
            "kind": kind,
            "axes": tuple(axes),
            "moved": moved,
            "dtype": HLO_DTYPES.get(name, name),
        }
        self.ops.append(Op("collective", [value], [result], params))

    def stated(self, op: Op) -> None:
        """Keeps a collective that the program states itself."""
        given = op.params.get("axes", op.params.get("axis_name"))
        names = (given,) if isinstance(given, str) else tuple(given or ())
        axes = [axis for axis in names if self.plan.mesh_shape.get(axis, 1) > 1]
        for value, out in zip(op.inputs, op.outputs, strict=False):  # others' axes may split it
            out.axes = value.axes if value.shape == out.shape else ((),) * len(out.shape)
        if not axes:
            self.ops.append(Op("alias", op.inputs[:1], op.outputs, {}))
            return
        kind = STATED[op.name]
        for value, out in zip(op.inputs, op.outputs, strict=False):
            sizes = [local_bytes(each, self.plan.mesh_shape) for each in (value, out)]
            # Of the two sides of a ragged exchange, one has room for the worst case.
            size = {"all-gather": sizes[1], "ragged-all-to-all": min(sizes)}.get(kind, sizes[0])
            self.collective(kind, axes, value, out, size)

    def enter(self, op: Op) -> None:
        for value, inner, spec in zip(op.inputs, op.outputs, op.params["specs"], strict=True):
            others = _without(value.axes, op.params["own"])
            outer = self.reshard(value, self._with_spec(others, spec))
            inner.axes, inner.root = others, outer
            self.ops.append(Op("alias", [outer], [inner], {}))

    def leave(self, op: Op) -> None:
        for value, outer, spec in zip(op.inputs, op.outputs, op.params["specs"], strict=True):
            outer.axes = self._with_spec(_without(value.axes, op.params["own"]), spec)
            outer.root = value
            self.ops.append(Op("alias", [value], [outer], {}))

    def _with_spec(self, others: Axes, spec: Any) -> Axes:
        """Returns the axes of a value outside a shard_map: those of its spec, and others."""
        own = self.active(axes_by_dim(spec, len(others)))
        return tuple((*rest, *mine) for rest, mine in zip(others, own, strict=True))

    def loop(self, op: Op) -> None:
        """Splits a loop: what it carries keeps the split of its start, or of the first trip."""
        body, consts, carried = op.body, op.params["num_consts"], op.params["num_carry"]
        assert body is not None
        for i, (value, inner) in enumerate(zip(op.inputs, body.inputs, strict=True)):
            inner.axes = value.axes if i < consts + carried else value.axes[1:]
            inner.is_free = value.is_free
            if id(value.source) in self.plan.params:
                self.plan.params.add(id(inner))
        done = self.plan.run(body)
        starts = body.inputs[consts : consts + carried]
        if any(
            inner.is_free and not out.is_free
            for inner, out in zip(starts, body.outputs, strict=False)
        ):
            for inner, out in zip(starts, body.outputs, strict=False):
                if inner.is_free:
                    inner.axes, inner.is_free = out.axes, out.is_free
            done = self.plan.run(body)
        outputs = []
        inner_pass = _Pass(self.plan, Region(body.inputs, [], []))
        inner_pass.ops = done.ops
        for i, out in enumerate(body.outputs):
            outputs.append(inner_pass.reshard(out, starts[i].axes) if i < carried else out)
        done = Region(body.inputs, inner_pass.ops, outputs)
        inputs = list(op.inputs)
        for i in range(carried):
            inputs[consts + i] = self.reshard(inputs[consts + i], starts[i].axes)
        for i, (value, inner) in enumerate(zip(op.outputs, outputs, strict=True)):
            value.axes = inner.axes if i < carried else ((), *inner.axes)
        self.ops.append(Op("scan", inputs, op.outputs, op.params, done))


def _without(axes: Axes, dropped: Collection[str]) -> Axes:
    return tuple(tuple(axis for axis in each if axis not in dropped) for each in axes)


def list_collectives(region: Region) -> list[Collective]:
    """Returns what one run of a split program moves."""
    found = []
    for op, times in region.walk():
        if op.name == "collective":
            p = op.params
            found.append(Collective(p["kind"], p["axes"], p["dtype"], times, p["moved"] * times))
    return total_by_kind(found)
