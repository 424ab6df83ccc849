"""Where two implementations are compared: activations of the same meaning.

A tap is a rule like those of the weights. On the left stands a module of the reference and the
dimensions of what it returns, on the right ours. The taps follow from the weights' rules: where a
kernel of ours is a weight of theirs, what our module returns is what theirs returns, with the
dimensions that both have in common; and the modules around them return the residual stream.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from flax import nnx

from jaxllm.config import SequenceConfig
from jaxllm.errors import UserError
from jaxllm.interop.families import Table
from jaxllm.interop.parity.numerics.array_store import Shelf, in_memory
from jaxllm.interop.parity.numerics.attention_scores import PROBS, SCORES, seen_only
from jaxllm.interop.rules.axis_ranges import Sizes
from jaxllm.interop.rules.pattern import Side
from jaxllm.interop.rules.rule import BoundRule, Rule
from jaxllm.interop.rules.transfer import Transfer
from jaxllm.layers.linear import Embedding, Linear
from jaxllm.layers.norm import Norm
from jaxllm.models import Model
from jaxllm.params import stacked_layers

from .inputs import Inputs, last_stack

# What attention is given and returns: their name, ours, and the projection whose rule says how a
# head's elements lie.
HEADS = (
    ("query", "q", "q_proj"),
    ("key", "k", "k_proj"),
    ("value", "v", "v_proj"),
    ("mixed", "mixed", "o_proj"),
)
# What our models compute of each token of a source.
OF_SOURCE = re.compile(r"encoder\.|source_\w+|.*\.cross_attn\.[kv](_proj)?$")
# What some tokens alone go through, those of any row one after the other.
OF_SOME = ".overflow."
# Of attention's modules, what holds each.
ATTENTIONS = ("attn", "cross_attn")

KEYS = "keys"  # the axis of scores that softmax is over


class Tap:
    """One activation: a rule from the reference's output to ours, at given sizes."""

    def __init__(self, rule: Rule, sizes: Sizes, inputs: Inputs):
        self.of_source = OF_SOURCE.match(rule.model.name) is not None
        given = inputs.source if self.of_source else inputs.target
        assert given is not None, "a model with an encoder has a source"
        is_crossing = ".cross_attn." in rule.model.name
        seen = inputs.source if is_crossing and inputs.source is not None else given
        sizes = {**sizes, "B": given.shape[0], "T": given.shape[1], KEYS: seen.shape[1]}
        self.rule, self.sizes = rule, sizes
        self.importing = rule.importing(sizes)
        self.paths = [name for name, _ in rule.model.names(sizes)]
        self.modules = [name.partition("#")[0] for name, _ in rule.stored.names(sizes)]

    def is_shown(self, outputs: Mapping[str, np.ndarray]) -> bool:
        """Whether the reference shows it; what softmax was given may be no scores of tokens."""
        shape, is_sure = self.rule.stored.shape(self.sizes), KEYS not in self.rule.stored.dims[-1]
        return all(
            name in outputs and (is_sure or outputs[name].shape == shape) for name in self.modules
        )


def derive(table: Table, model: Model, inputs: Inputs) -> list[Tap]:
    """The taps of a model whose layers are not stacked, for these inputs."""
    rules = table.bound(stacked_layers(model))
    modules = dict(_named_modules(model))
    modules.pop(output_path(model), None)  # taken from what the whole model returns
    taps = []
    for rule, sizes in rules:
        if (tap := _of_projection(rule, sizes, modules)) is not None:
            taps.append(Tap(tap, sizes, inputs))
    whole = [Tap(rule, table.sizes, inputs) for rule in _of_blocks(rules)]
    return [*taps, *whole, *(Tap(rule, sizes, inputs) for rule, sizes in _of_attention(rules))]


def output_path(model: Model) -> str:
    """Our name of what makes a model's outputs: a module or, if tied, the embeddings' `attend`."""
    config = last_stack(model)
    stack = "" if config is model.config else "decoder."
    if isinstance(config, SequenceConfig):
        return f"{stack}output_proj"
    return stack + ("embed.attend" if config.head.tied else "lm_head")


def _named_modules(model: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Module):
            yield ".".join(map(str, path)), node


def _of_projection(rule: Rule, sizes: Sizes, modules: Mapping[str, nnx.Module]) -> Rule | None:
    """The tap of the module whose parameter the rule is about, if it returns what theirs does."""
    first = rule.model.format_name(dict.fromkeys(rule.model.name_axes, 0), sizes)
    module = modules.get(first.rpartition(".")[0])
    kept = _returned(module, first.rpartition(".")[2])
    theirs = rule.stored.name.partition("#")
    stored_module, _, parameter = theirs[0].rpartition(".")
    if kept is None or OF_SOME in first or parameter != "weight" or not stored_module:
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
        ours = rule.model.format_name(index, sizes).split(".")[:-2]
        stored = [name for name, _ in rule.stored.names(sizes)]
        for depth in range(1, len(ours) + 1):
            names.setdefault(".".join(ours[:depth]), []).extend(stored)
    for ours, stored in names.items():
        columns = zip(*(name.split(".") for name in stored), strict=False)
        theirs = [column[0] for column in itertools.takewhile(lambda c: len(set(c)) == 1, columns)]
        outside = [name for path in names if not _is_under(path, ours) for name in names[path]]
        prefix = ".".join(theirs) + "."
        last = ours.rpartition(".")[2]
        is_layer = last.isdigit() or last in (*ATTENTIONS, "mlp")
        own = [name for name in outside if name.startswith(prefix) and name not in stored]
        if theirs and is_layer and not own:
            yield Rule(Side(prefix[:-1], _STREAM), Side(ours, _STREAM))


_STREAM = (("B",), ("T",), ("D",))


def _is_under(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent + ".")


def _of_attention(rules: Sequence[BoundRule]) -> Iterator[tuple[Rule, Sizes]]:
    """The taps of what each attention is given, after RoPE, of what it makes of it and returns."""
    for rule, sizes in rules:
        stored = next(name for name, _ in rule.stored.names(sizes)).partition("#")[0]
        module = stored.rsplit(".", 2)[0]
        for name, _ in rule.model.names(sizes):
            attention, _, projection = name.removesuffix(".kernel").rpartition(".")
            if attention.rpartition(".")[2] in ATTENTIONS:
                for tap in (*_heads(rule, projection), *_scores(rule, projection)):
                    theirs, ours = (side.name for side in (tap.stored, tap.model))
                    yield (
                        Rule(
                            Side(f"{module}@{theirs}", tap.stored.dims),
                            Side(f"{attention}.{ours}", tap.model.dims),
                        ),
                        sizes,
                    )


def _heads(rule: Rule, projection: str) -> Iterator[Rule]:
    """What is a head for each of those that the projection's rule is about."""
    for theirs, ours, wanted in HEADS:
        if projection == wanted:
            place = 0 if wanted == "o_proj" else 1
            heads, own = rule.model.dims[place], rule.model.dims[place + 1 :]
            own = own[:-1] if wanted == "o_proj" else own
            inner = {axis for dim in own for axis in dim}
            head = tuple(a for dim in rule.stored.dims for a in dim if a in inner)
            order = (("T",), heads) if theirs == "mixed" else (heads, ("T",))
            yield Rule(
                Side(theirs, (("B",), *order, head)), Side(ours, (("B",), ("T",), heads, *own))
            )


def _scores(rule: Rule, projection: str) -> Iterator[Rule]:
    """What softmax is given and returns, of each of the queries' heads."""
    if projection == "q_proj":
        heads = rule.model.dims[1]
        for name in (SCORES, PROBS):
            theirs, ours = (("B",), heads, ("T",), (KEYS,)), (("B",), ("T",), heads, (KEYS,))
            yield Rule(Side(name, theirs), Side(name, ours))


class Alignment:
    """The taps of a comparison, and the reference's outputs under our names."""

    def __init__(self, taps: Sequence[Tap]):
        self.taps = list(taps)

    @property
    def modules(self) -> list[str]:
        """The modules of the reference whose outputs are needed."""
        return list(dict.fromkeys(name.partition("@")[0] for name in self.names))

    @property
    def names(self) -> list[str]:
        """What is needed of the reference: modules, and of an attention `module@query`, ..."""
        return list(dict.fromkeys(name for tap in self.taps for name in tap.modules))

    def align(
        self, outputs: Mapping[str, np.ndarray], shelf: Shelf = in_memory
    ) -> dict[str, np.ndarray]:
        """The reference's outputs under our names, in our layout and in its order of execution.

        What attention is given and returns is left out where the reference does not show it.

        Raises:
            UserError: an output is of another size than the model's.
        """
        order = {name: place for place, name in enumerate(outputs)}
        shown = [tap for tap in self.taps if tap.is_shown(outputs)]
        parts = _split_fused(shown, outputs)
        shown.sort(key=lambda tap: max(order[name] for name in tap.modules))
        aligned: dict[str, np.ndarray] = {}
        for tap in shown:
            for path, index in tap.rule.model.names(tap.sizes):
                array = _assemble(tap.importing, index, parts)
                aligned[path] = shelf(seen_only(array) if path.endswith(f".{SCORES}") else array)
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
                raise UserError(f"{name} of the reference is {output.shape}, the model has {shape}")
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
