"""A traced step as a flat program: calls are inlined, loops keep bodies, dead code is gone."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxllm.layers.experts.grouped_rows import expected_times

# What a compiler merges with a value, so that both are one array in another dtype or order.
VIEWS = {
    *("convert_element_type", "transpose", "reshape", "copy", "copy_p", "name", "squeeze"),
    *("stop_gradient", "optimization_barrier", "reduce_precision", "pvary", "expand_dims"),
}


@dataclasses.dataclass(eq=False)
class Value:
    """An array of the program. `axes` says which mesh axes split each dimension."""

    shape: tuple[int, ...]
    dtype: np.dtype
    axes: tuple[tuple[str, ...], ...] = ()
    is_free: bool = False  # a constant, which any device can make in any part
    root: "Value | None" = None  # what it is a view of
    needed: bool = False
    branch: int | None = None  # the platform's branch, of what chooses one

    @property
    def source(self) -> "Value":
        """The value that it is a view of, or itself."""
        return self if self.root is None else self.root.source


@dataclasses.dataclass(eq=False)
class Op:
    """An operation; a loop has a body."""

    name: str
    inputs: list[Value]
    outputs: list[Value]
    params: dict[str, Any]
    body: "Region | None" = None


@dataclasses.dataclass(eq=False)
class Region:
    """Operations in order, from inputs to outputs: a whole program or the body of a loop."""

    inputs: list[Value]
    ops: list[Op]
    outputs: list[Value]

    def walk(self, times: int = 1) -> Iterator[tuple[Op, int]]:
        """Yields every operation with the number of times that it runs."""
        for op in self.ops:
            yield op, times
            if op.body is not None:
                yield from op.body.walk(times * op.params.get("length", 1))


def flatten(closed: Any, platform: str) -> Region:
    """Returns the program of a closed jaxpr, as a platform ("tpu" or "cuda") runs it."""
    region = _Flattener(platform).region(closed.jaxpr)
    drop_dead_code(region)
    return region


def _value(aval: Any, **fields: Any) -> Value:
    shape = tuple(getattr(aval, "shape", ()))
    dtype = getattr(aval, "dtype", np.dtype(np.float32))
    dtype = dtype if isinstance(dtype, np.dtype) else np.dtype(np.uint32)  # keys of random numbers
    return Value(shape, dtype, tuple(() for _ in shape), **fields)


class _Flattener:
    def __init__(self, platform: str):
        self.platform = platform

    def region(self, jaxpr: Any, given: Sequence[Value] = ()) -> Region:
        """Converts a jaxpr to a region of its own, with the branches that `given` inputs choose."""
        env: dict[Any, Value] = {}
        for var in jaxpr.constvars:
            env[var] = _value(var.aval, is_free=True)
        inputs = [env.setdefault(var, _value(var.aval)) for var in jaxpr.invars]
        for value, outer in zip(inputs, given, strict=False):
            value.branch = outer.branch
        ops: list[Op] = []
        self.inline(jaxpr, env, ops)
        return Region(inputs, ops, [self.read(env, var) for var in jaxpr.outvars])

    def read(self, env: dict[Any, Value], atom: Any) -> Value:
        """Returns the value of a variable; a literal is a constant."""
        return _value(atom.aval, is_free=True) if hasattr(atom, "val") else env[atom]

    def inline(self, jaxpr: Any, env: dict[Any, Value], ops: list[Op]) -> None:
        """Appends the operations of a jaxpr, with its variables bound in `env`."""
        for eqn in jaxpr.eqns:
            inputs = [self.read(env, atom) for atom in eqn.invars]
            name, params = eqn.primitive.name, eqn.params
            if name == "platform_index":
                env[eqn.outvars[0]] = value = _value(eqn.outvars[0].aval, is_free=True)
                value.branch = self._branch(params["platforms"])
            elif name == "cond":
                chosen = inputs[0].branch
                if chosen is None:  # the last branch stands for all
                    chosen = len(params["branches"]) - 1
                self._call(params["branches"][chosen], inputs[1:], eqn.outvars, env, ops)
            elif name == "shard_map":
                self._shard_map(eqn, inputs, env, ops)
            elif name in ("scan", "while"):
                ops.append(self._loop(eqn, inputs, env))
            elif (inner := _called(params)) is not None and name != "pallas_call":
                self._call(inner, inputs, eqn.outvars, env, ops)
            else:
                outputs = [env.setdefault(var, _value(var.aval)) for var in eqn.outvars]
                ops.append(Op(name, inputs, outputs, params))
                for value in inputs:  # an index is clamped and converted before it is used
                    if value.branch is not None and len(outputs) == 1:
                        outputs[0].branch = value.branch

    def _loop(self, eqn: Any, inputs: list[Value], env: dict[Any, Value]) -> Op:
        """Returns a scan, or a while loop as a scan of the trips that its name expects, or one."""
        params = eqn.params
        body = params["jaxpr" if eqn.primitive.name == "scan" else "body_jaxpr"]
        outputs = [env.setdefault(var, _value(var.aval)) for var in eqn.outvars]
        expected = expected_times(str(eqn.source_info.name_stack)) or 1
        kept = {**params, "length": params.get("length", expected)}
        if "ft_in" in params:  # of newer jax: what is constant, what is carried, and the rest
            sizes = [len(list(part)) for part in params["ft_in"].unpack()]
            kept |= {"num_consts": sizes[0], "num_carry": sizes[1]}
        if eqn.primitive.name == "while":
            kept |= {"num_consts": params["body_nconsts"], "num_carry": len(outputs)}
            inputs = inputs[params["cond_nconsts"] :]
        return Op("scan", inputs, outputs, kept, self.region(body.jaxpr, inputs))

    def _branch(self, platforms: Sequence[Any]) -> int:
        """Returns the branch of this platform, or that of all others."""
        for i, names in enumerate(platforms):
            if names is None or self.platform in names:
                return i
        return len(platforms) - 1

    def _call(
        self,
        inner: Any,
        inputs: list[Value],
        outvars: Sequence[Any],
        env: dict[Any, Value],
        ops: list[Op],
    ) -> None:
        jaxpr = getattr(inner, "jaxpr", inner)
        local = dict(zip(jaxpr.invars, inputs, strict=True))
        local |= {var: _value(var.aval, is_free=True) for var in jaxpr.constvars}
        self.inline(jaxpr, local, ops)
        for var, inside in zip(outvars, jaxpr.outvars, strict=True):
            env[var] = self.read(local, inside)

    def _shard_map(
        self, eqn: Any, inputs: list[Value], env: dict[Any, Value], ops: list[Op]
    ) -> None:
        """Inlines a shard_map: along its own axes, values inside have the shapes of one device."""
        jaxpr, params = eqn.params["jaxpr"], eqn.params
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        local = [_value(var.aval) for var in jaxpr.invars]
        own = params["newly_manual_axes"]
        given = {"specs": params["in_specs"], "own": own}
        ops.append(Op("shard_map_enter", inputs, local, given))
        inside = dict(zip(jaxpr.invars, local, strict=True))
        self.inline(jaxpr, inside, ops)
        results = [self.read(inside, var) for var in jaxpr.outvars]
        outputs = [env.setdefault(var, _value(var.aval)) for var in eqn.outvars]
        returned = {"specs": params["out_specs"], "own": own}
        ops.append(Op("shard_map_exit", results, outputs, returned))


def _called(params: dict[str, Any]) -> Any:
    """Returns the jaxpr that an equation calls, if it is a call."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in params:
            return params[key]
    return None


def drop_dead_code(region: Region) -> None:
    """Removes operations whose results nothing needs, also from the bodies of loops."""
    for value in region.outputs:
        value.needed = True
    kept = []
    for op in reversed(region.ops):
        if not any(value.needed for value in op.outputs):
            continue
        if op.body is not None:
            _drop_unused_outputs(op, op.body)
        if op.name in ("shard_map_enter", "shard_map_exit"):
            _drop_unused_pairs(op)
        for value in op.inputs:
            value.needed = True
        kept.append(op)
    region.ops = kept[::-1]


def _drop_unused_pairs(op: Op) -> None:
    """Removes what enters or leaves a shard_map for nobody, such as a sum that is not needed."""
    pairs = zip(op.inputs, op.outputs, op.params["specs"], strict=True)
    kept = [pair for pair in pairs if pair[1].needed]
    op.inputs, op.outputs = [pair[0] for pair in kept], [pair[1] for pair in kept]
    op.params = {**op.params, "specs": tuple(pair[2] for pair in kept)}


def _drop_unused_outputs(op: Op, body: Region) -> None:
    """Removes what a loop stacks for nobody, and then what is dead in its body."""
    carried = op.params["num_carry"]
    keep = [i < carried or value.needed for i, value in enumerate(op.outputs)]
    op.outputs = [value for value, kept in zip(op.outputs, keep, strict=True) if kept]
    body.outputs = [value for value, kept in zip(body.outputs, keep, strict=True) if kept]
    drop_dead_code(body)
    pairs = zip(op.inputs, body.inputs, strict=True)
    fixed = op.params["num_consts"] + carried
    keep = [inner.needed or i < fixed for i, (_, inner) in enumerate(pairs)]
    op.inputs = [value for value, kept in zip(op.inputs, keep, strict=True) if kept]
    body.inputs = [value for value, kept in zip(body.inputs, keep, strict=True) if kept]


def local_shape(value: Value, mesh_shape: dict[str, int]) -> tuple[int, ...]:
    """Returns the shape of the part that one device holds."""
    return tuple(
        -(-size // math.prod(mesh_shape[axis] for axis in axes))
        for size, axes in zip(value.shape, value.axes, strict=True)
    )


def local_bytes(value: Value, mesh_shape: dict[str, int]) -> float:
    """Returns the bytes that one device holds of a value."""
    return math.prod(local_shape(value, mesh_shape)) * value.dtype.itemsize
