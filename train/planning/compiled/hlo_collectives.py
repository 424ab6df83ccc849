"""Collectives of a compiled program: kind, mesh axes and bytes, times the trips of their loops."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxllm.train.planning.collectives import Collective, share, total_by_kind

from .hlo import Instruction, Module, Shape

KINDS = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
_LISTED = re.compile(r"replica_groups=\{(\{[^}]*\}(?:,\{[^}]*\})*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\]"
    r"(?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_PAIRS = re.compile(r"source_target_pairs=\{.*?\}\}")


def read_collectives(module: Module, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """Returns what one execution moves, summed by kind, mesh axes and dtype.

    Bytes are those that one device receives (or sends): a gather over n devices receives
    (n - 1) / n of its result, a reduce-scatter of its input, an all-reduce both.

    Args:
        module: the compiled program.
        mesh_shape: the size of each mesh axis; devices are numbered row by row.
    """
    found: list[Collective] = []
    seen: set[tuple[str, ...]] = set()
    fused = {
        name for _, one, _ in module.instructions() if one.op == "fusion" for name in one.called
    }
    for computation, one, runs in module.instructions():
        kind = one.op.removesuffix("-start")
        if kind not in KINDS:
            continue
        channel = re.search(r"channel_id=(\d+)", one.rest)
        if channel and computation in fused:  # TPUs spread one collective over several fusions
            # Sums of one channel are different ones if they have computations of their own.
            region = re.search(r"to_apply=%([\w.\-]*?)(?:\.clone[\w.]*)?[,\s]", f"{one.rest} ")
            key = kind, channel[1], one.shape, one.scope, region[1] if region else ""
            if key in seen:
                continue
            seen.add(key)
        groups = device_groups(one.rest, math.prod(mesh_shape.values()))
        moved = _results(one, kind)
        size, total = len(groups[0]), sum(shape.size for shape in moved)
        if kind == "ragged-all-to-all":  # one of its two sides has room for the worst case
            total = min(
                sum(shape.size for shape in given) for given in _sides(module, computation, one)
            )
        # A fusion of this name holds an all-reduce of which each device keeps its part.
        if kind == "all-reduce" and re.search("all.reduce.scatter", computation):
            kind = "reduce-scatter"
        elif kind == "reduce-scatter":
            total *= size  # the input is as large as all results together
        dtypes = "/".join(sorted({shape.dtype for shape in moved}))
        axes = axes_of(groups, mesh_shape)
        found.append(Collective(kind, axes, dtypes, runs, runs * total * share(kind, size)))
    return total_by_kind(found)


def _sides(module: Module, computation: str, one: Instruction) -> list[list[Shape]]:
    """Returns the rows before and after a ragged exchange, without the integers that say where."""
    rows = [shape for shape in one.outputs if shape.dtype[0] in "bf"]
    if one.op.endswith("-start"):  # returns its operands as well
        return [rows[:1], rows[1:2]]
    by_name = {other.name: other.outputs for other in module.computations[computation]}
    return [rows[:1], by_name.get(one.operands[0], rows)[:1]]


def _results(one: Instruction, kind: str) -> list[Shape]:
    """Returns the arrays that arrive. An asynchronous start returns its operands as well."""
    arrays = one.outputs
    if not one.op.endswith("-start") or (kind == "all-reduce" and not one.shape.startswith("((")):
        return arrays
    if kind == "collective-permute":
        return arrays[1:2]
    half = len(arrays) // 2
    parts = (arrays[:half], arrays[half : 2 * half])
    order = sorted(parts, key=lambda part: sum(shape.size for shape in part))
    return order[0] if kind == "reduce-scatter" else order[-1]


def device_groups(text: str, devices: int) -> list[tuple[int, ...]]:
    """Returns the groups of devices that exchange data, in any of the notations of HLO."""
    if listed := _LISTED.search(text):
        groups = re.findall(r"\{([^}]*)\}", listed[1])
        return [tuple(_numbers(group)) for group in groups]
    if iota := _IOTA.search(text):
        ids = np.arange(devices).reshape(_numbers(iota[2]))
        if iota[3]:
            ids = ids.transpose(_numbers(iota[3]))
        return [tuple(group) for group in ids.reshape(_numbers(iota[1])).tolist()]
    if mesh := _MESH.search(text):
        return _mesh_groups(*mesh.groups())
    if pairs := _PAIRS.search(text):
        return [tuple(_numbers(pair)) for pair in re.findall(r"\{(\d+,\d+)", pairs[0])]
    return [tuple(range(devices))]


def _mesh_groups(
    axes: str, dims: str | None, reshaped: str | None, order: str | None, used: str
) -> list[tuple[int, ...]]:
    """Returns the groups of a mesh, such as `mesh['a'=2,'b'=4] {'b'}`."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    chosen = re.findall(r"'(\w+)'", used)
    ids = np.arange(math.prod(sizes.values()))
    if dims:
        ids = ids.reshape(_numbers(reshaped or dims))
        if order:
            ids = ids.transpose(_numbers(order))
    ids = ids.reshape([*sizes.values()])
    names = sorted(range(len(sizes)), key=lambda i: [*sizes][i] in chosen)  # stable
    group = math.prod(sizes[name] for name in chosen)
    return [tuple(each) for each in ids.transpose(names).reshape(-1, group).tolist()]


def axes_of(groups: Sequence[Sequence[int]], mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes along which the devices of a group differ."""
    varying = set()
    for group in groups[:64]:
        places = np.unravel_index(np.array(group), [*mesh_shape.values()])
        varying |= {axis for axis, at in zip(mesh_shape, places, strict=True) if len(set(at)) > 1}
    return tuple(axis for axis in mesh_shape if axis in varying)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
