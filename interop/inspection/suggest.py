"""Rules for tensors that have none, proposed from their names and shapes: a beginning, no proof."""

import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from scipy.optimize import linear_sum_assignment

from jaxllm.config import Config, DecoderConfig
from jaxllm.interop.families import Layout, Table
from jaxllm.interop.families.common.family import decoder_sizes
from jaxllm.interop.formats.pytorch.wrapped_names import strip_wrappers
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.formats.tensor_files import read_only_file
from jaxllm.interop.loading.diagnostics import reason_to_ignore
from jaxllm.interop.loading.plan import analyze_checkpoint
from jaxllm.interop.loading.user_family import open_checkpoint, resolve_family
from jaxllm.interop.rules.axis_ranges import Dims
from jaxllm.interop.rules.pattern import Side
from jaxllm.interop.rules.rule import Rule
from jaxllm.models import Decoder, build_abstract
from jaxllm.params import named_parameters, stacked_layers

from .layout_search import (
    EPSILON,
    Shape,
    Stored,
    Target,
    choose_layout,
    fold,
    is_flipped,
    list_layouts,
    make_rules,
    order_bonus,
)
from .name_similarity import Vocabulary

# Arrays of one module that are often stored as one tensor, in this order.
FUSED = (("q_proj", "k_proj", "v_proj"), ("k_proj", "v_proj"), ("gate_proj", "up_proj"))
CLOSE = 0.8  # of the best likeness: near enough to be what was meant
WEAK = 0.15  # a likeness that says nothing

Pair = tuple[Stored, tuple[Target, ...]]


@dataclasses.dataclass(frozen=True)
class Suggested:
    """A rule, how much its names are alike, and what neither names nor shapes decide."""

    rule: Rule
    likeness: float
    doubts: tuple[str, ...] = ()

    def __str__(self) -> str:
        sides = [f'"{side.text}"' for side in (self.rule.stored, self.rule.model)]
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
        shapes = {
            name: of.shape for name, of in strip_wrappers(read_only_file(Path(tensors))).items()
        }
    else:
        try:
            checkpoint = open_checkpoint(Path(tensors), rules)
        except CheckpointError as error:
            if rules is not None:
                raise
            raise CheckpointError([*error.problems, "so its config must be given"]) from None
        shapes = {name: of.shape for name, of in checkpoint.tensors.items()}
        account = analyze_checkpoint(checkpoint)
        if account.config is None:
            raise CheckpointError(account.problems, tensors)
        config, table = config or account.config, account.table
    if rules is not None and config is not None:
        table = resolve_family(rules).table(config, Layout())
    if not isinstance(config, DecoderConfig):
        raise CheckpointError("to suggest rules, the config of a decoder must be given")
    return _Search(config, shapes, table or Table((), {})).result()


class _Search:
    """The tensors and arrays that are left over, and which belong together."""

    def __init__(self, config: DecoderConfig, shapes: Mapping[str, Shape], table: Table):
        self.sizes = {**decoder_sizes(config), **table.sizes}
        self.known = frozenset(self.sizes)
        model = build_abstract(dataclasses.replace(config, scan_layers=False))
        rules = table.bound(stacked_layers(model))
        done = {name for bound in rules for name, _ in bound.rule.model.names(bound.sizes)}
        self.targets = self._targets(model, done)
        layers = {target.layers for target in self.targets if target.layers is not None}
        taken = {name.partition("#")[0] for bound in rules for name, _ in bound.stored()}
        left = {
            name: shape
            for name, shape in shapes.items()
            if name not in {*taken, *table.tied} and reason_to_ignore(table, name) is None
        }
        self.stored = list(fold(left, layers, self.sizes.get("E")))
        self.bundles = list(self._bundles())
        singles = [(target.name,) for target in self.targets]
        fused = [tuple(target.name for target in bundle) for bundle in self.bundles]
        self.vocabulary = Vocabulary(config, [*singles, *fused])
        self.is_tied = config.head.tied
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
            likeness += (likeness > 0) * order_bonus(stored, targets)
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
            return [[dims] for dims in list_layouts(axes[0], tensor.shape, self.sizes)]
        ways = []
        for place in range(len(tensor.shape)):
            rows = tensor.shape[place]
            each = [
                [
                    d
                    for d in list_layouts(own, tensor.shape, self.sizes, place)
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
        wants_flipped = self._convention(pairs, ways)
        said: list[Suggested] = []
        for tensor, targets in pairs.items():
            way = choose_layout(targets[0], ways[tensor], wants_flipped)
            doubts = [
                *self._doubts(tensor, targets, pairs),
                *self._turned(tensor, ways[tensor], way),
            ]
            fit = self._fit(tensor, targets)
            for rule in make_rules(tensor, targets, way, self.sizes):
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
            is_flipped(targets[0], ways[tensor][0][0])
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
                side = Side(tensor.name, way[0]).text
                yield f'{sizes} does not say which way it lies; the other is "{side}"'

    def _tied(
        self, pairs: Mapping[Stored, tuple[Target, ...]], left: Sequence[Stored]
    ) -> dict[str, str]:
        """Tensors left over that have the shape of the embedding that the head is tied to."""
        embeddings = [t for t, targets in pairs.items() if targets[0].name == "embed.embedding"]
        if not self.is_tied or not embeddings:
            return {}
        return {t.name: embeddings[0].name for t in left if t.shape == embeddings[0].shape}
