"""Tensors and arrays that are alike in all layers, and the ways to lay one out as the other."""

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

TOGETHER = ({"N", "H"}, {"K", "H"})  # axes that are merged everywhere
EPSILON = 0.001  # of likeness: less than any word is worth
ORDER = (
    *("embed", "embed_position", "attn_norm", "q_proj", "k_proj", "v_proj", "o_proj"),
    *("q_norm", "k_norm", "attn_out_norm", "mlp_norm", "gate_proj", "up_proj", "down_proj"),
    *("mlp_out_norm", "final_norm", "lm_head"),
)
_NUMBER = re.compile(r"(?<![^._/])\d+(?![^._/])")


@dataclasses.dataclass(frozen=True)
class Stored:
    """Tensors whose names differ in the number of the layer, or of the expert, alone."""

    name: str  # with {L} and {E} in it
    shape: Shape
    layers: tuple[int, ...] | None = None  # None: it is in no layer
    has_experts: bool = False


@dataclasses.dataclass(frozen=True)
class Target:
    """Arrays of the model whose names differ in the number of the layer alone."""

    name: str
    axes: tuple[str, ...]
    layers: tuple[int, ...] | None


def fold(
    shapes: Mapping[str, Shape], layers: Collection[tuple[int, ...]], num_experts: int | None
) -> Iterator[Stored]:
    """The tensors, those of all layers that have them as one, and so those of all experts."""
    alike: dict[tuple[str, Shape], list[tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        key = _NUMBER.sub("\0", name), shape
        alike.setdefault(key, []).append(tuple(map(int, _NUMBER.findall(name))))
    for (template, shape), rows in alike.items():
        yield from _fold_columns(Stored(template, shape), rows, layers, num_experts)


def _fold_columns(
    tensor: Stored,
    rows: Sequence[tuple[int, ...]],
    layers: Collection[tuple[int, ...]],
    num_experts: int | None,
) -> Iterator[Stored]:
    """Replaces the numbers of a name, each a NUL in it, from the left: by an axis, or as it is."""
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
    """The ways to merge axes, in their order, into dimensions of this shape.

    `free` is a dimension of any size. Axes that are seldom merged are so only if nothing else fits.
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
            odd = sum(len(dim) != 1 and set(dim) not in TOGETHER for dim in dims)
            found[dims] = odd
    return [dims for dims, odd in found.items() if odd == min(found.values())]


def is_flipped(target: Target, dims: Dims) -> bool:
    """Whether the axes lie in another order than in the model's array."""
    flat = [axis for dim in dims for axis in dim]
    return flat != [axis for axis in target.axes if axis in flat]


def order_bonus(stored: Sequence[Stored], targets: Sequence[Target]) -> np.ndarray:
    """A little more for pairs that stand at like places, to decide where names say nothing."""
    last = max(len(stored), len(targets)) - 1 or 1
    usual = sorted(range(len(targets)), key=lambda i: _place(targets[i].name))
    places = np.argsort(usual)
    return EPSILON * (1 - abs(np.arange(len(stored))[:, None] - places[None]) / last)


def _place(name: str) -> int:
    """Where most models define what fills this array."""
    parts = (number for number, part in enumerate(ORDER) if f".{part}." in f".{name}")
    return next(parts, len(ORDER))


def choose_layout(target: Target, ways: list[list[Dims]], wants_flipped: bool) -> list[Dims]:
    """The way of most other tensors, if there are several."""
    wanted = wants_flipped and target.name.endswith("kernel")
    return next((way for way in ways if is_flipped(target, way[0]) == wanted), ways[0])


def make_rules(
    tensor: Stored, targets: tuple[Target, ...], way: list[Dims], sizes: Sizes
) -> Iterator[Rule]:
    """One rule; for parts of different shapes, one for each."""
    layers = tensor.layers
    every = layers is None or layers == tuple(range(len(layers)))
    kept = None if every else layers
    sides = [Side(target.name, tuple((axis,) for axis in target.axes)) for target in targets]
    names = [target.name.split(".")[-2].removesuffix("_proj") for target in targets]
    if len(targets) == 1:
        yield Rule(Side(tensor.name, way[0]), sides[0], layers=kept)
    elif len(set(way)) == 1:
        extents = Side(tensor.name, way[0]).shape(sizes)
        place = next(i for i, extent in enumerate(extents) if extent != tensor.shape[i])
        dims = tuple(("P", *dim) if i == place else dim for i, dim in enumerate(way[0]))
        model = targets[0].name.replace(f".{names[0]}_proj.", f".{{P={'|'.join(names)}}}_proj.")
        yield Rule(Side(tensor.name, dims), Side(model, sides[0].dims), layers=kept)
    else:
        for name, dims, side in zip(names, way, sides, strict=True):
            yield Rule(Side(f"{tensor.name}#{name}", dims), side, layers=kept)
