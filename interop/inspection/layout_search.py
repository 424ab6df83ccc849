"""Folds tensors over layers and experts, and lists layouts that fit the shape of an array."""

import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from jaxllm.interop.rules.axis_ranges import Dims, Sizes
from jaxllm.interop.rules.pattern import Side
from jaxllm.interop.rules.rule import Rule

Shape = tuple[int, ...]

TOGETHER = ({"N", "H"}, {"K", "H"})  # axes that are usually merged
EPSILON = 0.001  # similarity for a possible shape: less than any word counts
# The usual order in which models define their parts.
ORDER = (
    *("embed", "embed_position", "attn_norm", "q_proj", "k_proj", "v_proj", "o_proj"),
    *("q_norm", "k_norm", "attn_out_norm", "mlp_norm", "gate_proj", "up_proj", "down_proj"),
    *("mlp_out_norm", "final_norm", "lm_head"),
)
NUMBER = re.compile(r"(?<![^._/])\d+(?![^._/])")  # a part of a name that is a number


@dataclasses.dataclass(frozen=True)
class Stored:
    """Stored tensors whose names differ only in the index of the layer or expert."""

    name: str  # with {L} and {E} for the indices
    shape: Shape
    layers: tuple[int, ...] | None = None  # None: outside the layers
    has_experts: bool = False


@dataclasses.dataclass(frozen=True)
class Target:
    """Arrays of the model whose names differ only in the index of the layer."""

    name: str
    axes: tuple[str, ...]
    layers: tuple[int, ...] | None


def fold_layers(
    shapes: Mapping[str, Shape], layers: Collection[tuple[int, ...]], num_experts: int | None
) -> Iterator[Stored]:
    """Folds tensors that differ only in the index of the layer or expert into one."""
    alike: dict[tuple[str, Shape], list[tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        key = NUMBER.sub("\0", name), shape
        alike.setdefault(key, []).append(tuple(map(int, NUMBER.findall(name))))
    for (template, shape), rows in alike.items():
        yield from _fold_columns(Stored(template, shape), rows, layers, num_experts)


def _fold_columns(
    tensor: Stored,
    rows: Sequence[tuple[int, ...]],
    layers: Collection[tuple[int, ...]],
    num_experts: int | None,
) -> Iterator[Stored]:
    """Replaces each number in a name (marked by NUL), left to right, with an axis or itself."""
    if "\0" not in tensor.name:
        yield tensor
        return
    values = tuple(sorted({row[0] for row in rows}))
    cut = lambda text, **known: dataclasses.replace(  # noqa: E731
        tensor, name=tensor.name.replace("\0", text, 1), **known
    )
    if tensor.layers is None and values in layers:
        named = {cut("{L}", layers=values): values}
    elif not tensor.has_experts and num_experts and values == tuple(range(num_experts)):
        named = {cut("{E}", has_experts=True): values}
    else:
        named = {cut(str(value)): (value,) for value in values}
    for one, own in named.items():
        rest = [row[1:] for row in rows if row[0] in own]
        yield from _fold_columns(one, rest, layers, num_experts)


def list_layouts(
    axes: Sequence[str], shape: Shape, sizes: Sizes, free: int | None = None
) -> list[Dims]:
    """Lists the ways to assign axes to dimensions of this shape; merged axes keep their order.

    The dimension with index `free` may have any size. Unusual merges are listed only if nothing
    else fits.
    """
    found: dict[Dims, int] = {}
    for places in itertools.product(range(len(shape)), repeat=len(axes)):
        dims = tuple(
            tuple(axis for axis, place in zip(axes, places, strict=True) if place == number)
            for number in range(len(shape))
        )
        extents = [math.prod(sizes[axis] for axis in dim) for dim in dims]
        fits = (a == b for i, (a, b) in enumerate(zip(extents, shape, strict=True)) if i != free)
        if all(fits):
            found[dims] = sum(len(dim) != 1 and set(dim) not in TOGETHER for dim in dims)
    return [dims for dims, unusual in found.items() if unusual == min(found.values())]


def is_flipped(target: Target, dims: Dims) -> bool:
    """Whether the axes are in a different order than in the model's array."""
    flat = [axis for dim in dims for axis in dim]
    return flat != [axis for axis in target.axes if axis in flat]


def order_bonus(stored: Sequence[Stored], targets: Sequence[Target]) -> np.ndarray:
    """Returns a small bonus for pairs at similar positions, to break ties between names."""
    last = max(len(stored), len(targets)) - 1 or 1
    usual = sorted(range(len(targets)), key=lambda i: _place(targets[i].name))
    places = np.argsort(usual)
    return EPSILON * (1 - abs(np.arange(len(stored))[:, None] - places[None]) / last)


def _place(name: str) -> int:
    """Returns the position at which most models define this array."""
    parts = (number for number, part in enumerate(ORDER) if f".{part}." in f".{name}")
    return next(parts, len(ORDER))


def choose_layout(target: Target, layouts: list[list[Dims]], wants_flipped: bool) -> list[Dims]:
    """Returns the layout that follows the convention of the other tensors, or the first one."""
    wanted = wants_flipped and target.name.endswith("kernel")
    fitting = (layout for layout in layouts if is_flipped(target, layout[0]) == wanted)
    return next(fitting, layouts[0])


def make_rules(
    tensor: Stored, targets: tuple[Target, ...], layout: list[Dims], sizes: Sizes
) -> Iterator[Rule]:
    """Returns one rule, or for fused parts of different shapes one rule for each part."""
    layers = tensor.layers
    every = layers is None or layers == tuple(range(len(layers)))
    kept = None if every else layers
    sides = [Side(target.name, tuple((axis,) for axis in target.axes)) for target in targets]
    names = [target.name.split(".")[-2].removesuffix("_proj") for target in targets]
    if len(targets) == 1:
        yield Rule(Side(tensor.name, layout[0]), sides[0], layers=kept)
    elif len(set(layout)) == 1:
        extents = Side(tensor.name, layout[0]).shape(sizes)
        place = next(i for i, extent in enumerate(extents) if extent != tensor.shape[i])
        dims = tuple(("P", *dim) if i == place else dim for i, dim in enumerate(layout[0]))
        model = targets[0].name.replace(f".{names[0]}_proj.", f".{{P={'|'.join(names)}}}_proj.")
        yield Rule(Side(tensor.name, dims), Side(model, sides[0].dims), layers=kept)
    else:
        for name, dims, side in zip(names, layout, sides, strict=True):
            yield Rule(Side(f"{tensor.name}#{name}", dims), side, layers=kept)
