"""Taps: pairs of activations, one of each side, that must be equal.

A tap is a rule like the conversion rules of weights. Its stored side names a module of the
reference and the dimensions of that module's output; its model side does so for the JAX model.
Taps are derived from the rules of the weights. If a JAX kernel maps to a PyTorch weight, the
outputs of the two modules correspond, in the dimensions that the two have in common. The modules
around them return the residual stream.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from flax import nnx

from jaxllm.config import SequenceConfig, has_head
from jaxllm.interop.families import RuleTable
from jaxllm.interop.parity.numerics.attention_scores import PROBS, SCORES
from jaxllm.interop.parity.report.activation_rows import LOGITS
from jaxllm.interop.rules.axis_ranges import Sizes
from jaxllm.interop.rules.pattern import Side
from jaxllm.interop.rules.rule import BoundRule, Rule
from jaxllm.layers.linear import Embedding, Linear
from jaxllm.layers.norm import Norm
from jaxllm.models import Model
from jaxllm.params import stacked_layers

from .calls import calls_of
from .function_model import FunctionModel
from .inputs import Inputs, output_config

# Inputs and output of attention, and of the delta rule in its place: the name in the reference, the
# name in JAX, and the projection whose rule gives the layout of a head.
HEADS = (
    ("query", "q", "q_proj"),
    ("key", "k", "k_proj"),
    ("value", "v", "v_proj"),
    ("beta", "beta", "beta_proj"),
    ("decay", "decay", "decay_proj"),
    ("mixed", "mixed", "o_proj"),
)
# Paths of JAX activations that have a position for each token of the source.
OF_SOURCE = re.compile(r"encoder\.|source_\w+|.*\.cross_attn\.[kv](_proj)?$")
# Path of a module that only some tokens go through, with the tokens of all rows concatenated.
OF_SOME = ".overflow."
# Names of the attention modules of a block.
ATTENTIONS = ("attn", "cross_attn")
PARTS = (*ATTENTIONS, "mlp")

KEYS = "keys"  # the axis of attention scores that softmax normalizes


def positions_of(path: str, inputs: Inputs) -> np.ndarray:
    """Returns the sequences that have a position for each of the activation's: source or target."""
    is_source = inputs.source is not None and OF_SOURCE.match(path) is not None
    return inputs.source if is_source and inputs.source is not None else inputs.target


class Tap:
    """One activation: a rule from the reference's output to the JAX model's, at given sizes."""

    def __init__(self, rule: Rule, sizes: Sizes, inputs: Inputs):
        given = positions_of(rule.model.name, inputs)
        self.of_source = given is inputs.source
        is_crossing = ".cross_attn." in rule.model.name
        seen = inputs.source if is_crossing and inputs.source is not None else given
        sizes = {**sizes, "B": given.shape[0], "T": given.shape[1], KEYS: seen.shape[1]}
        self.rule, self.sizes = rule, sizes
        self.importing = rule.importing(sizes)
        self.paths = [name for name, _ in rule.model.names(sizes)]
        self.modules = [name.partition("#")[0] for name, _ in rule.stored.names(sizes)]

    def calls(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, str]]:
        """Returns, for each call that the reference recorded, its name by module.

        A softmax inside attention may also normalize something else than the scores of all
        keys, and an embedding of sources and targets has two sizes. Outputs of another shape, or
        another size than the last call's, are not compared.
        """
        shape, is_sure = self.rule.stored.shape(self.sizes), KEYS not in self.rule.stored.dims[-1]
        fitting = []
        for module in self.modules:
            names = calls_of(module, outputs)
            last = outputs[names[-1]].size if names else 0
            fitting.append(
                [
                    n
                    for n in names
                    if (outputs[n].size == last if is_sure else outputs[n].shape == shape)
                ]
            )
        rounds = zip(*fitting, strict=False)
        return [dict(zip(self.modules, names, strict=True)) for names in rounds]


def derive_taps(table: RuleTable, model: Model, inputs: Inputs) -> list[Tap]:
    """Derives the taps of a model from the conversion rules of its weights.

    The taps of a function are those that its user names.

    Args:
        table: conversion rules of the reference's family.
        model: the JAX model, its layers not stacked.
        inputs: the inputs, which give the sizes of the activations.
    """
    if isinstance(model, FunctionModel):
        return [Tap(rule, table.sizes, inputs) for rule in model.parts.function.taps]
    rules = table.bound(stacked_layers(model))
    modules = dict(_named_modules(model))
    modules.pop(output_path(model), None)  # compared as the output of the whole model
    taps = []
    for rule, sizes in rules:
        if (tap := _projection_tap(rule, sizes, modules)) is not None:
            taps.append(Tap(tap, sizes, inputs))
    whole = [Tap(rule, table.sizes, inputs) for rule in _block_taps(rules)]
    inside = [Tap(rule, sizes, inputs) for rule, sizes in _attention_taps(rules)]
    return [tap for tap in (*taps, *whole, *inside) if not _is_unlike(tap, table)]


def _is_unlike(tap: Tap, table: RuleTable) -> bool:
    """Whether the outputs of the reference's module are known not to be those of the model's."""
    return any(fnmatchcase(name, one) for name in tap.modules for one in table.unlike)


def output_path(model: Model) -> str:
    """Returns the JAX path of what computes the outputs: a module or, if tied, `embed.attend`.

    Without a head that is the final norm, or what would be there.
    """
    if isinstance(model, FunctionModel):
        return LOGITS
    config = output_config(model)
    stack = "" if config is model.config else "decoder."
    if isinstance(config, SequenceConfig):
        return f"{stack}output_proj"
    if not has_head(config):
        return f"{stack}final_norm"
    return stack + ("embed.attend" if config.head.tied else "lm_head")


def _named_modules(model: nnx.Module) -> Iterator[tuple[str, nnx.Module]]:
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Module):
            yield ".".join(map(str, path)), node


def _projection_tap(rule: Rule, sizes: Sizes, modules: Mapping[str, nnx.Module]) -> Rule | None:
    """Returns the tap of the module that holds the rule's parameter.

    None if the module's output is not the reference's up to a change of layout.
    """
    first = rule.model.format_name(dict.fromkeys(rule.model.name_axes, 0), sizes)
    module = modules.get(first.rpartition(".")[0])
    is_output_dim = _output_dims(module, first.rpartition(".")[2])
    theirs = rule.stored.name.partition("#")
    stored_module, _, parameter = theirs[0].rpartition(".")
    if is_output_dim is None or OF_SOME in first or parameter != "weight" or not stored_module:
        return None
    ours = tuple(
        dim for is_kept, dim in zip(is_output_dim, rule.model.dims, strict=True) if is_kept
    )
    axes = {*rule.model.name_axes, *(axis for dim in ours for axis in dim)}
    stored = tuple(dim for dim in rule.stored.dims if set(dim) <= axes)
    part = "".join(theirs[1:])
    try:
        return Rule(
            Side(stored_module + part, (("B",), ("T",), *stored)),
            Side(rule.model.name.rpartition(".")[0], (("B",), ("T",), *ours)),
        )
    except ValueError:  # the two outputs do not map one to one
        return None


def _output_dims(module: nnx.Module | None, parameter: str) -> list[bool] | None:
    """Returns which dimensions of a parameter are dimensions of its module's output."""
    if isinstance(module, Linear) and parameter == "kernel":
        _, kernel, output = module.equation.replace("->", ",").split(",")
        return [letter in output for letter in kernel]
    if isinstance(module, Embedding) and parameter == "embedding":
        return [False, True]
    if isinstance(module, Norm) and module.scale is not None and parameter == "scale":
        return None if "H" in module.scale.dims else [True] * len(module.scale.dims)
    return None


def _block_taps(rules: Sequence[BoundRule]) -> Iterator[Rule]:
    """Yields the taps of layers and their parts: modules with the same weights on both sides."""
    names: dict[str, list[str]] = {}
    for rule, sizes in rules:
        index = dict.fromkeys(rule.model.name_axes, 0)
        ours = rule.model.format_name(index, sizes).split(".")[:-1]
        if ours and ours[-1] not in PARTS:  # of a module inside, not the part's own
            ours.pop()
        stored = [name for name, _ in rule.stored.names(sizes)]
        for depth in range(1, len(ours) + 1):
            names.setdefault(".".join(ours[:depth]), []).extend(stored)
    for ours, stored in names.items():
        columns = zip(*(name.split(".") for name in stored), strict=False)
        theirs = [column[0] for column in itertools.takewhile(lambda c: len(set(c)) == 1, columns)]
        outside = [name for path in names if not _is_under(path, ours) for name in names[path]]
        prefix = ".".join(theirs) + "."
        last = ours.rpartition(".")[2]
        is_layer = last.isdigit() or last in PARTS
        own = [name for name in outside if name.startswith(prefix) and name not in stored]
        if theirs and is_layer and not own:
            yield Rule(Side(prefix[:-1], _STREAM), Side(ours, _STREAM))


_STREAM = (("B",), ("T",), ("D",))


def _is_under(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent + ".")


def _attention_taps(rules: Sequence[BoundRule]) -> Iterator[tuple[Rule, Sizes]]:
    """Yields the taps inside attention: q, k, v after RoPE, scores, probabilities, mixed values."""
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
    """Yields the taps of the heads that a projection computes or, for o_proj, takes."""
    for theirs, ours, wanted in HEADS:
        if projection == wanted:
            place = 0 if wanted == "o_proj" else 1
            heads, own = rule.model.dims[place], rule.model.dims[place + 1 :]
            own = own[:-1] if wanted == "o_proj" else own
            inner = {axis for dim in own for axis in dim}
            head = tuple(a for dim in rule.stored.dims for a in dim if a in inner)
            order = (("T",), heads) if theirs == "mixed" else (heads, ("T",))
            yield Rule(
                Side(theirs, (("B",), *order, *([head] if own else []))),
                Side(ours, (("B",), ("T",), heads, *own)),
            )


def _scores(rule: Rule, projection: str) -> Iterator[Rule]:
    """Yields the taps of the softmax input and output, by query head; for q_proj only."""
    if projection == "q_proj":
        heads = rule.model.dims[1]
        for name in (SCORES, PROBS):
            theirs, ours = (("B",), heads, ("T",), (KEYS,)), (("B",), ("T",), heads, (KEYS,))
            yield Rule(Side(name, theirs), Side(name, ours))
