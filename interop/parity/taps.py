"""Where two implementations are compared: activations of the same meaning.

A tap is a rule like those of the weights. On the left stands a module of the reference and the
dimensions of what it returns, on the right ours. The taps follow from the weights' rules: where a
kernel of ours is a weight of theirs, what our module returns is what theirs returns, with the
dimensions that both have in common; and the modules around them return the residual stream.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from flax import nnx

from jaxllm.interop.families import Table
from jaxllm.interop.rules import BoundRule, Rule, Side, Sizes, Transfer
from jaxllm.layers.linear import Embedding, Linear
from jaxllm.layers.norm import Norm
from jaxllm.models.decoder import Decoder
from jaxllm.params import stacks

# What attention is given and returns: their name, ours, and the projection whose rule says how a
# head's elements lie.
HEADS = (
    ("query", "q", "q_proj"),
    ("key", "k", "k_proj"),
    ("value", "v", "v_proj"),
    ("mixed", "mixed", "o_proj"),
)


class Tap:
    """One activation: a rule from the reference's output to ours, at given sizes."""

    def __init__(self, rule: Rule, sizes: Sizes):
        self.rule, self.sizes = rule, sizes
        self.importing = rule.importing(sizes)
        self.paths = [name for name, _ in rule.model.names(sizes)]
        self.modules = [name.partition("#")[0] for name, _ in rule.stored.names(sizes)]


def derive(table: Table, model: Decoder, shape_BT: tuple[int, int]) -> list[Tap]:
    """The taps of a model whose layers are not stacked, for tokens of this shape."""
    batch_size, length = shape_BT
    extent = {"B": batch_size, "T": length}
    rules = table.bound(stacks(model))
    modules = dict(_named_modules(model))
    taps = []
    for rule, sizes in rules:
        if (tap := _of_projection(rule, sizes, modules)) is not None:
            taps.append(Tap(tap, {**sizes, **extent}))
    whole = [Tap(rule, {**table.sizes, **extent}) for rule in _of_blocks(rules)]
    return [*taps, *whole, *(Tap(rule, {**sizes, **extent}) for rule, sizes in _of_heads(rules))]


def _named_modules(model: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Module):
            yield ".".join(map(str, path)), node


def _of_projection(rule: Rule, sizes: Sizes, modules: Mapping[str, nnx.Module]) -> Rule | None:
    """The tap of the module whose parameter the rule is about, if it returns what theirs does."""
    first = rule.model.spell(dict.fromkeys(rule.model.name_axes, 0), sizes)
    module = modules.get(first.rpartition(".")[0])
    kept = _returned(module, first.rpartition(".")[2])
    theirs = rule.stored.name.partition("#")
    stored_module, _, parameter = theirs[0].rpartition(".")
    if kept is None or parameter != "weight" or not stored_module:
        return None
    ours = tuple(dim for letter, dim in zip(kept, rule.model.dims, strict=True) if letter)
    axes = {*rule.model.name_axes, *(axis for dim in ours for axis in dim)}
    stored = tuple(dim for dim in rule.stored.dims if set(dim) <= axes)
    part = "".join(theirs[1:])
    try:
        return Rule(
            Side(stored_module + part, (("B",), ("T",), *stored)),
            Side(rule.model.name.rpartition(".")[0], (("B",), ("T",), *ours)),
        )
    except ValueError:  # what they return is not ours relabelled
        return None


def _returned(module: nnx.Module | None, parameter: str) -> list[bool] | None:
    """Which dimensions of a module's parameter are dimensions of what it returns."""
    if isinstance(module, Linear) and parameter == "kernel":
        _, kernel, output = module.equation.replace("->", ",").split(",")
        return [letter in output for letter in kernel]
    if isinstance(module, Embedding) and parameter == "embedding":
        return [False, True]
    if isinstance(module, Norm) and parameter == "scale" and "H" not in module.scale.dims:
        return [True] * len(module.scale.dims)
    return None


def _of_blocks(rules: Sequence[BoundRule]) -> Iterator[Rule]:
    """The taps of modules around projections: those that hold the same weights on both sides."""
    names: dict[str, list[str]] = {}
    for rule, sizes in rules:
        index = dict.fromkeys(rule.model.name_axes, 0)
        ours = rule.model.spell(index, sizes).split(".")[:-2]
        stored = [name for name, _ in rule.stored.names(sizes)]
        for depth in range(1, len(ours) + 1):
            names.setdefault(".".join(ours[:depth]), []).extend(stored)
    for ours, stored in names.items():
        columns = zip(*(name.split(".") for name in stored), strict=False)
        theirs = [column[0] for column in itertools.takewhile(lambda c: len(set(c)) == 1, columns)]
        outside = [name for path in names if not _is_under(path, ours) for name in names[path]]
        prefix = ".".join(theirs) + "."
        is_layer = ours.rpartition(".")[2].isdigit() or ours.rpartition(".")[2] in ("attn", "mlp")
        own = [name for name in outside if name.startswith(prefix) and name not in stored]
        if theirs and is_layer and not own:
            yield Rule(Side(prefix[:-1], _STREAM), Side(ours, _STREAM))


_STREAM = (("B",), ("T",), ("D",))


def _is_under(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent + ".")


def _of_heads(rules: Sequence[BoundRule]) -> Iterator[tuple[Rule, Sizes]]:
    """The taps of what each attention is given, after RoPE, and of what it returns."""
    for rule, sizes in rules:
        stored = next(name for name, _ in rule.stored.names(sizes)).partition("#")[0]
        module = stored.rsplit(".", 2)[0]
        for name, _ in rule.model.names(sizes):
            layer, _, projection = name.rpartition(".attn.")
            for theirs, ours, wanted in HEADS:
                if projection != f"{wanted}.kernel":
                    continue
                place = 0 if wanted == "o_proj" else 1
                heads, own = rule.model.dims[place], rule.model.dims[place + 1 :]
                own = own[:-1] if wanted == "o_proj" else own
                inner = {axis for dim in own for axis in dim}
                head = tuple(a for dim in rule.stored.dims for a in dim if a in inner)
                order = (("T",), heads) if theirs == "mixed" else (heads, ("T",))
                yield (
                    Rule(
                        Side(f"{module}@{theirs}", (("B",), *order, head)),
                        Side(f"{layer}.attn.{ours}", (("B",), ("T",), heads, *own)),
                    ),
                    sizes,
                )


class Alignment:
    """The taps of a comparison, and the reference's outputs under our names."""

    def __init__(self, taps: Sequence[Tap]):
        self.taps = list(taps)

    @property
    def modules(self) -> list[str]:
        """The modules of the reference whose outputs are needed."""
        names = (name.partition("@")[0] for tap in self.taps for name in tap.modules)
        return list(dict.fromkeys(names))

    def align(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The reference's outputs under our names, in our layout and in its order of execution.

        What attention is given and returns is left out where the reference does not show it.

        Raises:
            ValueError: an output is of another size than the model's.
        """
        order = {name: place for place, name in enumerate(outputs)}
        shown = [tap for tap in self.taps if all(name in order for name in tap.modules)]
        shown.sort(key=lambda tap: max(order[name] for name in tap.modules))
        parts = _split_fused(self.taps, outputs)
        aligned: dict[str, np.ndarray] = {}
        for tap in shown:
            for path, index in tap.rule.model.names(tap.sizes):
                aligned[path] = _assemble(tap.importing, index, parts)
        return aligned


def _split_fused(taps: Sequence[Tap], outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs as the rules name them: those of fused modules cut along the last dimension."""
    parts: dict[str, np.ndarray] = {}
    used: dict[str, int] = {}
    for tap in taps:
        for name, _ in tap.rule.stored.names(tap.sizes):
            module, is_part, _ = name.partition("#")
            if module not in outputs:
                continue
            shape = tap.rule.stored.shape(tap.sizes)
            output = outputs[module]
            if is_part:
                start = used.get(module, 0)
                used[module] = start + shape[-1]
                output = output[..., start : used[module]]
            if output.size != int(np.prod(shape)) or output.shape[-1] != shape[-1]:
                raise ValueError(
                    f"{name} of the reference is {output.shape}, the model has {shape}"
                )
            parts[name] = output.reshape(shape)
    return parts


def _assemble(
    transfer: Transfer, index: Mapping[str, int], outputs: Mapping[str, np.ndarray]
) -> np.ndarray:
    shape = transfer.target.shape(transfer.sizes)
    whole = np.empty(shape, np.float32)
    for piece in transfer.pieces(index, [(0, size) for size in shape]):
        transfer.copy(piece, outputs[piece.name], whole)
    return whole
