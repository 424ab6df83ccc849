"""Rules for tensors that have none, proposed from their names and shapes: a beginning, no proof."""

import dataclasses
import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from scipy.optimize import linear_sum_assignment

from jaxllm.config import Config, DecoderConfig
from jaxllm.models import Decoder, build_abstract
from jaxllm.params import named_parameters, stacks

from .directory import unwrapped
from .families import Layout, Table
from .families.family import decoder_sizes
from .mismatch import reason_to_ignore
from .planning import take_account
from .rules import Rule, Side, Sizes
from .tensors import CheckpointError
from .user_rules import family_of, open_checkpoint, read_weights
from .vocabulary import Vocabulary

Shape = tuple[int, ...]
Dims = tuple[tuple[str, ...], ...]

# Arrays of one module that are often stored as one tensor, in this order.
FUSED = (("q_proj", "k_proj", "v_proj"), ("k_proj", "v_proj"), ("gate_proj", "up_proj"))
TOGETHER = ({"N", "H"}, {"K", "H"})  # axes that are merged everywhere
CLOSE = 0.8  # of the best likeness: near enough to be what was meant
WEAK = 0.15  # a likeness that says nothing
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


Pair = tuple[Stored, tuple[Target, ...]]


@dataclasses.dataclass(frozen=True)
class Suggested:
    """A rule, how much its names are alike, and what neither names nor shapes decide."""

    rule: Rule
    likeness: float
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        sides = [f'"{text_of(side)}"' for side in (self.rule.stored, self.rule.model)]
        if self.rule.layers is not None:
            sides.append(f"layers={list(self.rule.layers)}")
        line = f"    Rule({', '.join(sides)}),"
        if len(line) > 100:
            line = "\n".join(["    Rule(", *(f"        {side}," for side in sides), "    ),"])
        return "\n".join([*(f"    # ? {doubt}" for doubt in self.doubts), line])


@dataclasses.dataclass(frozen=True)
class Suggestions:
    """Rules to paste, the surest first, and what is left over on both sides."""

    rules: tuple[Suggested, ...]
    tied: Mapping[str, str]
    sizes: Mapping[str, int]  # of axes that are not of the legend
    unmatched: Mapping[str, Shape]  # tensors
    unfilled: tuple[str, ...]  # arrays

    def __str__(self) -> str:
        lines = ["rules = [", *map(str, self.rules), "]"]
        if self.sizes:
            lines.append(f"sizes = {dict(self.sizes)}")
        if self.tied:
            lines += ["# ? if they are copies", f"tied = {dict(self.tied)}"]
        lines += [f"# no rule for {name} {list(shape)}" for name, shape in self.unmatched.items()]
        return "\n".join([*lines, *(f"# nothing fills {name}" for name in self.unfilled)])


def suggest(
    tensors: str | Path | Mapping[str, Any], config: Config | None = None, *, rules: Any = None
) -> Suggestions:
    """Proposes rules for the tensors that have none, by what their names and shapes are like.

    Shapes decide what fits at all, by the sizes of the config; names decide among that, by how
    near they are to those of the known families. Doubts are said: a square matrix could as well
    lie transposed, and what has the shape of something else goes by its name alone.

    Args:
        tensors: a file, a folder, or shapes by name; a state dict will do.
        config: of the model; by default what `rules` or a known family read in the folder.
        rules: of your own, whose tensors and arrays are left alone.

    Raises:
        CheckpointError: there are no tensors, or no config.
    """
    table = None
    if isinstance(tensors, Mapping):
        shapes = {
            name: tuple(of.shape if hasattr(of, "shape") else of) for name, of in tensors.items()
        }
    elif rules is None and config is not None:
        shapes = {name: of.shape for name, of in unwrapped(read_weights(Path(tensors))).items()}
    else:
        try:
            checkpoint = open_checkpoint(Path(tensors), rules)
        except CheckpointError as error:
            if rules is not None:
                raise
            raise CheckpointError([*error.problems, "so its config must be given"]) from None
        shapes = {name: of.shape for name, of in checkpoint.tensors.items()}
        account = take_account(checkpoint)
        if account.config is None:
            raise CheckpointError(account.problems, tensors)
        config, table = config or account.config, account.table
    if rules is not None and config is not None:
        table = family_of(rules).table(config, Layout())
    if not isinstance(config, DecoderConfig):
        raise CheckpointError("to suggest rules, the config of a decoder must be given")
    return _Search(config, shapes, table or Table((), {})).result()


class _Search:
    """The tensors and arrays that are left over, and which belong together."""

    def __init__(self, config: DecoderConfig, shapes: Mapping[str, Shape], table: Table):
        self.sizes = {**decoder_sizes(config), **table.sizes}
        self.known = frozenset(self.sizes)
        model = build_abstract(dataclasses.replace(config, scan_layers=False))
        rules = table.bound(stacks(model))
        done = {name for bound in rules for name, _ in bound.rule.model.names(bound.sizes)}
        self.targets = self._targets(model, done)
        layers = {target.layers for target in self.targets if target.layers is not None}
        taken = {name.partition("#")[0] for bound in rules for name, _ in bound.stored()}
        left = {
            name: shape
            for name, shape in shapes.items()
            if name not in {*taken, *table.tied} and reason_to_ignore(table, name) is None
        }
        self.stored = list(_fold(left, layers, self.sizes.get("E")))
        self.bundles = list(self._bundles())
        singles = [(target.name,) for target in self.targets]
        fused = [tuple(target.name for target in bundle) for bundle in self.bundles]
        self.vocabulary = Vocabulary(config, [*singles, *fused])
        self.is_tied = config.tie_embeddings
        self.heads_are_alike = config.num_heads == config.num_kv_heads

    def _targets(self, model: Decoder, done: Collection[str]) -> list[Target]:
        """The model's arrays that no rule fills, those of layers as one."""
        found: dict[str, tuple[tuple[str, ...], list[int]]] = {}
        for name, variable in named_parameters(model).items():
            if name in done:
                continue
            layer = re.match(r"layers\.(\d+)\.", name)
            if layer is None:
                found[name] = self._axes(variable), []
                continue
            folded = "layers.{L}." + name[layer.end() :]
            found.setdefault(folded, (self._axes(variable), []))[1].append(int(layer[1]))
        return [
            Target(name, axes, tuple(sorted(layers)) or None)
            for name, (axes, layers) in found.items()
        ]

    def _axes(self, variable: nnx.Variable) -> tuple[str, ...]:
        """The axes of an array by names that have its sizes: the legend's, or new ones."""
        axes = []
        for letter, size in zip(variable.dims, variable.get_value().shape, strict=True):
            likely = [letter, *(axis for axis in ("X", "S", "M") if axis in self.sizes)]
            axis = next((axis for axis in likely if self.sizes.get(axis) == size), "M")
            axes.append(axis)
            self.sizes.setdefault(axis, size)
        return tuple(axes)

    def _bundles(self) -> Iterator[tuple[Target, ...]]:
        """Arrays that may be stored as one tensor."""
        by_name = {target.name: target for target in self.targets}
        for target in self.targets:
            for parts in FUSED:
                if f".{parts[0]}." not in target.name:
                    continue
                names = [target.name.replace(f".{parts[0]}.", f".{part}.") for part in parts]
                if all(name in by_name for name in names):
                    yield tuple(by_name[name] for name in names)

    def result(self) -> Suggestions:
        """The likeliest pairs: fused tensors first, then the best sum of likenesses."""
        pairs = dict(self._fused_pairs())
        used = {target.name for targets in pairs.values() for target in targets}
        targets = [target for target in self.targets if target.name not in used]
        stored = [tensor for tensor in self.stored if tensor not in pairs]
        likeness = np.array([[self._fit(s, (t,)) for t in targets] for s in stored])
        if likeness.size:
            likeness += (likeness > 0) * _order(stored, targets)
            for i, j in zip(*linear_sum_assignment(-likeness), strict=True):
                if likeness[i, j] > 0:
                    pairs[stored[i]] = (targets[j],)
        return self._say(pairs)

    def _fused_pairs(self) -> Iterator[tuple[Stored, tuple[Target, ...]]]:
        """Tensors that are rather several arrays than one."""
        used: set[str] = set()
        for tensor in self.stored:
            alone = max((self._fit(tensor, (target,)) for target in self.targets), default=0)
            fits = {bundle: self._fit(tensor, bundle) for bundle in self.bundles}
            bundle = max(fits, key=fits.__getitem__, default=())
            names = {target.name for target in bundle}
            if bundle and fits[bundle] > alone and not names & used:
                used |= names
                yield tensor, bundle

    def _fit(self, tensor: Stored, targets: tuple[Target, ...]) -> float:
        """How much a tensor's name is like that of what fits its shape; 0 if nothing fits."""
        if not self._ways(tensor, targets):
            return 0.0
        likeness = self.vocabulary.likeness(tensor.name, tuple(target.name for target in targets))
        return likeness + EPSILON  # what alone fits is better than nothing

    def _ways(self, tensor: Stored, targets: tuple[Target, ...]) -> list[list[Dims]]:
        """How the tensor's dimensions may be those of the arrays: the dimensions for each.

        Of fused ones they differ in the dimension along which the parts follow each other.
        """
        if any(target.layers != tensor.layers for target in targets):
            return []
        inside = {"E"} if tensor.has_experts else set()
        axes = [tuple(a for a in target.axes if a not in inside) for target in targets]
        if self.heads_are_alike and len({own for own in axes if "N" in own}) == 1:
            axes = [tuple("N" if axis == "K" else axis for axis in own) for own in axes]
        if inside and any("E" not in target.axes for target in targets):
            return []
        if len(targets) == 1:
            return [[dims] for dims in _arrangements(axes[0], tensor.shape, self.sizes)]
        ways = []
        for place in range(len(tensor.shape)):
            rows = tensor.shape[place]
            each = [
                [
                    d
                    for d in _arrangements(own, tensor.shape, self.sizes, place)
                    if not {"D", "E"} & set(d[place])
                ]
                for own in axes
            ]
            ways += [
                list(way)
                for way in zip(*each, strict=False)
                if sum(self._extent(dims[place]) for dims in way) == rows
                and (place == 0 or len(set(way)) == 1)
            ]
        return ways

    def _extent(self, dim: Sequence[str]) -> int:
        return math.prod(self.sizes[axis] for axis in dim)

    def _say(self, pairs: Mapping[Stored, tuple[Target, ...]]) -> Suggestions:
        """The rules of these pairs, with what speaks against them."""
        ways = {tensor: self._ways(tensor, targets) for tensor, targets in pairs.items()}
        is_flipped = self._convention(pairs, ways)
        said: list[Suggested] = []
        for tensor, targets in pairs.items():
            way = _choose(targets[0], ways[tensor], is_flipped)
            doubts = [
                *self._doubts(tensor, targets, pairs),
                *self._turned(tensor, ways[tensor], way),
            ]
            fit = self._fit(tensor, targets)
            for rule in _rules(tensor, targets, way, self.sizes):
                said.append(Suggested(rule, round(fit, 3), tuple(doubts)))
                doubts = []
        left = [tensor for tensor in self.stored if tensor not in pairs]
        used = {target.name for targets in pairs.values() for target in targets}
        tied = self._tied(pairs, left)
        own = {axis: size for axis, size in self.sizes.items() if axis not in self.known}
        return Suggestions(
            rules=tuple(sorted(said, key=lambda one: -one.likeness)),
            tied=tied,
            sizes=own,
            unmatched={t.name: t.shape for t in left if t.name not in tied},
            unfilled=tuple(t.name for t in self.targets if t.name not in used),
        )

    def _convention(
        self, pairs: Mapping[Stored, tuple[Target, ...]], ways: Mapping[Stored, list[list[Dims]]]
    ) -> bool:
        """Whether kernels lie transposed to ours, as `torch.nn.Linear` has them.

        The majority of those decides that can lie in one way only.
        """
        votes = [
            _is_flipped(targets[0], ways[tensor][0][0])
            for tensor, targets in pairs.items()
            if targets[0].name.endswith("kernel") and len(ways[tensor]) == 1
        ]
        return 2 * sum(votes) >= len(votes)

    def _doubts(
        self,
        tensor: Stored,
        targets: tuple[Target, ...],
        pairs: Mapping[Stored, tuple[Target, ...]],
    ) -> Iterator[str]:
        """What else a tensor may be, and whether its name says anything."""
        if len(targets) > 1:
            names = ", ".join(target.name.split(".")[-2] for target in targets)
            yield f"fused: {names} one after the other, as in most models; no shape tells it"
            return
        own = self._fit(tensor, targets)
        rivals = [
            other[0].name
            for rival, other in pairs.items()
            if len(other) == 1 and self._could_swap((tensor, targets), (rival, other))
        ]
        if rivals:
            yield f"by its name and shape it may as well be {', '.join(rivals)}"
        elif own < WEAK:
            yield "by its shape alone"
        elif self.heads_are_alike and re.search(r"\.[qkv]_proj\.", targets[0].name):
            yield "by its name alone: N = K, so that queries, keys and values have one shape"

    def _could_swap(self, one: Pair, other: Pair) -> bool:
        """Whether two tensors could change places, as far as shapes and names tell."""
        if one == other:
            return False
        crossed = [self._fit(one[0], other[1]), self._fit(other[0], one[1])]
        straight = self._fit(*one) + self._fit(*other)
        return min(crossed) > 0 and sum(crossed) > CLOSE * straight

    def _turned(self, tensor: Stored, ways: list[list[Dims]], chosen: list[Dims]) -> Iterator[str]:
        """The other ways in which a tensor of this shape may lie."""
        for way in ways:
            if way != chosen:
                sizes = " x ".join(map(str, tensor.shape))
                side = text_of(Side(tensor.name, way[0]))
                yield f'{sizes} does not say which way it lies; the other is "{side}"'

    def _tied(
        self, pairs: Mapping[Stored, tuple[Target, ...]], left: Sequence[Stored]
    ) -> dict[str, str]:
        """Tensors left over that have the shape of the embedding that the head is tied to."""
        embeddings = [t for t, targets in pairs.items() if targets[0].name == "embed.embedding"]
        if not self.is_tied or not embeddings:
            return {}
        return {t.name: embeddings[0].name for t in left if t.shape == embeddings[0].shape}


def text_of(side: Side) -> str:
    """The side as it is written in a rule."""
    dims = (dim[0] if len(dim) == 1 else f"({' '.join(dim)})" for dim in side.dims)
    return f"{side.name} : {' '.join(dims)}"


def _fold(
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


def _arrangements(
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


def _is_flipped(target: Target, dims: Dims) -> bool:
    """Whether the axes lie in another order than in the model's array."""
    flat = [axis for dim in dims for axis in dim]
    return flat != [axis for axis in target.axes if axis in flat]


def _order(stored: Sequence[Stored], targets: Sequence[Target]) -> np.ndarray:
    """A little more for pairs that stand at like places, to decide where names say nothing."""
    last = max(len(stored), len(targets)) - 1 or 1
    usual = sorted(range(len(targets)), key=lambda i: _place(targets[i].name))
    places = np.argsort(usual)
    return EPSILON * (1 - abs(np.arange(len(stored))[:, None] - places[None]) / last)


def _place(name: str) -> int:
    """Where most models define what fills this array."""
    parts = (number for number, part in enumerate(ORDER) if f".{part}." in f".{name}")
    return next(parts, len(ORDER))


def _choose(target: Target, ways: list[list[Dims]], is_flipped: bool) -> list[Dims]:
    """The way of most other tensors, if there are several."""
    wanted = is_flipped and target.name.endswith("kernel")
    return next((way for way in ways if _is_flipped(target, way[0]) == wanted), ways[0])


def _rules(
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
