"""Matching stored tensors to arrays of a decoder: shapes say what fits, names what is likely."""

import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from flax import nnx
from scipy.optimize import linear_sum_assignment

from jaxllm.config import DecoderConfig
from jaxllm.interop.families import RuleTable
from jaxllm.interop.families.common.decoder_axes import decoder_sizes
from jaxllm.interop.loading.diagnostics import reason_to_ignore
from jaxllm.interop.rules.axis_ranges import Dims
from jaxllm.models import Decoder, build_abstract
from jaxllm.params import named_parameters, stacked_layers

from .layout_search import EPSILON, Shape, Stored, Target, fold_layers, list_layouts, order_bonus
from .name_similarity import Vocabulary

# Arrays of one module that are often stored as one fused tensor, in this order.
FUSED = (("q_proj", "k_proj", "v_proj"), ("k_proj", "v_proj"), ("gate_proj", "up_proj"))

Targets = tuple[Target, ...]  # the array that a tensor fills, or several if it is fused


class Matcher:
    """The tensors and arrays without rules, and how well they fit each other.

    Args:
        config: the model's config.
        shapes: the shapes of the stored tensors, by name.
        table: the rules that exist already; their tensors and arrays are left out.
    """

    def __init__(self, config: DecoderConfig, shapes: Mapping[str, Shape], table: RuleTable):
        self._config = config
        self.sizes = {**decoder_sizes(config), **table.sizes}
        self._known_axes = frozenset(self.sizes)
        model = build_abstract(dataclasses.replace(config, scan_layers=False))
        rules = table.bound(stacked_layers(model))
        filled = {name for bound in rules for name, _ in bound.rule.model.names(bound.sizes)}
        self.targets = self._unfilled_targets(model, filled)
        layers = {target.layers for target in self.targets if target.layers is not None}
        used = {name.partition("#")[0] for bound in rules for name, _ in bound.stored()}
        left = {
            name: shape
            for name, shape in shapes.items()
            if name not in {*used, *table.tied} and reason_to_ignore(table, name) is None
        }
        self.stored = list(fold_layers(left, layers, self.sizes.get("E")))
        self._bundles = list(self._fusable_targets())
        singles = [(target.name,) for target in self.targets]
        fused = [tuple(target.name for target in bundle) for bundle in self._bundles]
        self._vocabulary = Vocabulary(config, [*singles, *fused])
        self.has_equal_heads = config.num_heads == config.num_kv_heads

    @property
    def new_sizes(self) -> dict[str, int]:
        """Sizes of the axes that neither the legend nor the given rules name."""
        return {axis: size for axis, size in self.sizes.items() if axis not in self._known_axes}

    @property
    def size_formulas(self) -> dict[str, str]:
        """The new sizes that follow from the config, as expressions in `config`."""
        formulas = position_formulas(self._config)
        return {axis: formulas[size] for axis, size in self.new_sizes.items() if size in formulas}

    def _unfilled_targets(self, model: Decoder, filled: Collection[str]) -> list[Target]:
        """The model's arrays that no rule fills; the same array of several layers is one target."""
        found: dict[str, tuple[tuple[str, ...], list[int]]] = {}
        for name, variable in named_parameters(model).items():
            if name in filled:
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
        """Names the axes of an array: letters of the legend with the right sizes, or new ones."""
        axes = []
        for letter, size in zip(variable.dims, variable.get_value().shape, strict=True):
            likely = [letter, *(axis for axis in ("X", "S", "M") if axis in self.sizes)]
            axis = next((axis for axis in likely if self.sizes.get(axis) == size), "M")
            axes.append(axis)
            self.sizes.setdefault(axis, size)
        return tuple(axes)

    def _fusable_targets(self) -> Iterator[Targets]:
        """Groups of arrays that may be stored as one fused tensor."""
        by_name = {target.name: target for target in self.targets}
        for target in self.targets:
            for parts in FUSED:
                if f".{parts[0]}." not in target.name:
                    continue
                names = [target.name.replace(f".{parts[0]}.", f".{part}.") for part in parts]
                if all(name in by_name for name in names):
                    yield tuple(by_name[name] for name in names)

    def pairs(self) -> dict[Stored, Targets]:
        """Returns the likeliest pairs: fused tensors first, then the best total similarity."""
        pairs = dict(self._fused_pairs())
        used = {target.name for targets in pairs.values() for target in targets}
        targets = [target for target in self.targets if target.name not in used]
        stored = [tensor for tensor in self.stored if tensor not in pairs]
        fits = np.array([[self.fit(s, (t,)) for t in targets] for s in stored])
        if fits.size:
            fits += (fits > 0) * order_bonus(stored, targets)
            for i, j in zip(*linear_sum_assignment(-fits), strict=True):
                if fits[i, j] > 0:
                    pairs[stored[i]] = (targets[j],)
        return pairs

    def _fused_pairs(self) -> Iterator[tuple[Stored, Targets]]:
        """Tensors that fit a group of fused arrays better than any single array."""
        used: set[str] = set()
        for tensor in self.stored:
            single = max((self.fit(tensor, (target,)) for target in self.targets), default=0)
            fits = {bundle: self.fit(tensor, bundle) for bundle in self._bundles}
            bundle = max(fits, key=fits.__getitem__, default=())
            names = {target.name for target in bundle}
            if bundle and fits[bundle] > single and not names & used:
                used |= names
                yield tensor, bundle

    def fit(self, tensor: Stored, targets: Targets) -> float:
        """How similar a tensor's name is to the names of these arrays; 0 if its shape rules it out.

        A possible shape counts a little, so that the only candidate beats none.
        """
        if not self.layouts(tensor, targets):
            return 0.0
        names = tuple(target.name for target in targets)
        return self._vocabulary.likeness(tensor.name, names) + EPSILON

    def layouts(self, tensor: Stored, targets: Targets) -> list[list[Dims]]:
        """Lists the ways a tensor's shape can hold these arrays: for each way, dims per array.

        The dims of fused arrays differ in the dimension along which the parts are concatenated.
        """
        if any(target.layers != tensor.layers for target in targets):
            return []
        in_name = {"E"} if tensor.has_experts else set()
        axes = [tuple(a for a in target.axes if a not in in_name) for target in targets]
        if self.has_equal_heads and len({own for own in axes if "N" in own}) == 1:
            axes = [tuple("N" if axis == "K" else axis for axis in own) for own in axes]
        if in_name and any("E" not in target.axes for target in targets):
            return []
        if len(targets) == 1:
            return [[dims] for dims in list_layouts(axes[0], tensor.shape, self.sizes)]
        found = []
        for place in range(len(tensor.shape)):
            each = [
                [
                    dims
                    for dims in list_layouts(own, tensor.shape, self.sizes, place)
                    if not {"D", "E"} & set(dims[place])
                ]
                for own in axes
            ]
            found += [
                list(way)
                for way in zip(*each, strict=False)
                if sum(self._extent(dims[place]) for dims in way) == tensor.shape[place]
                and (place == 0 or len(set(way)) == 1)
            ]
        return found

    def _extent(self, dim: Sequence[str]) -> int:
        return math.prod(self.sizes[axis] for axis in dim)


def position_formulas(config: DecoderConfig) -> dict[int, str]:
    """Returns the number of rows of the model's table of positions, with its expression."""
    positions, longest = config.positions, config.max_len
    if positions.kind == "learned" and positions.offset:
        return {longest + positions.offset: "config.max_len + config.positions.offset"}
    if positions.kind == "learned":
        return {longest: "config.max_len"}
    if positions.kind == "distance":
        return {2 * longest - 1: "2 * config.max_len - 1"}
    if positions.relative is not None:
        return {positions.relative.count: "config.positions.relative.count"}
    return {}
