"""Attaches LoRA to a model: finds its targets, adds their factors, and takes them off again."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxllm.errors import UserError, did_you_mean
from jaxllm.layers.adapters.low_rank import LowRank, draw_factor, factor_dims, split_equation
from jaxllm.layers.dropout import layer_keys
from jaxllm.layers.experts.moe import Projections
from jaxllm.layers.linear import Linear
from jaxllm.layers.stack import layer_range
from jaxllm.models import Model
from jaxllm.params import named_parameters, stack_labels, unstack_name

from .config import ALL_LINEAR, LoraConfig

FACTORS = (".lora.a", ".lora.b")  # the ends of their parameters' names
HEADS = ("lm_head", "output_proj")  # without their call, so without factors
NEVER = ("router", *HEADS)  # projections that `all-linear` leaves out

AnyModel = TypeVar("AnyModel", bound=nnx.Module)


def projections(model: nnx.Module) -> dict[str, Linear | Projections]:
    """Maps dotted names, such as `layers.0:32.attn.q_proj`, to the model's projections."""
    found = ((".".join(map(str, path)), module) for path, module in nnx.iter_graph(model))
    return {name: module for name, module in found if isinstance(module, Linear | Projections)}


def add_lora(model: Model, lora: LoraConfig) -> Model:
    """Returns a model with LoRA's factors, as shapes without numbers, beside its targets.

    Args:
        model: with or without weights, which both models share.
        lora: the targets and the rank.

    Raises:
        UserError: a pattern matches nothing, or only part of the layers in one array. Lists every
            problem.
    """
    targets = find_targets(model, lora)
    check_full(model, lora.full)
    ranks = dict.fromkeys(targets, lora.rank)
    return with_factors(model, ranks, dict.fromkeys(targets, lora.scale), lora.dropout)


def with_factors(
    model: Model, ranks: Mapping[str, int], scales: Mapping[str, float], rate: float = 0.0
) -> Model:
    """Returns a model with factors, as shapes, of these ranks and scales by projection."""
    changed = nnx.merge(*nnx.split(model))
    for name, module in projections(changed).items():
        if name in ranks:
            shapes = factor_shapes(module, ranks[name])
            a, b = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
            dropped = 0.0 if isinstance(module, Projections) else rate
            module.lora = LowRank(module.equation, a, b, scale=scales[name], rate=dropped)
    changed.origin = model.origin
    return changed


def factor_shapes(module: Linear | Projections, rank: int) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes of the factors of a projection, with a leading L if it is stacked."""
    _, dims, _ = split_equation(module.equation)
    shape = module.kernel.get_value().shape
    sizes = {**dict(zip(dims, shape[len(shape) - len(dims) :], strict=True)), "R": rank}
    stacked = shape[: len(shape) - len(dims)]
    a, b = ((*stacked, *map(sizes.__getitem__, own)) for own in factor_dims(module.equation))
    return a, b


def find_targets(model: Model, lora: LoraConfig) -> list[str]:
    """Returns the names of the projections that get factors."""
    names = list(projections(model))
    layers = {name: [one for one, _ in unstack_name(f"{name}.kernel")] for name in names}
    found: dict[str, set[str]] = {name: set() for name in names}
    problems: list[str] = []
    for pattern in lora.targets:
        if pattern == ALL_LINEAR:
            chosen = [name for name in names if _end(name) not in NEVER]
            found |= {name: set(layers[name]) for name in chosen}
            continue
        matched = {
            name: {one for one in own if matches(one.removesuffix(".kernel"), pattern)}
            for name, own in layers.items()
        }
        problems += _pattern_problems(
            pattern, [name for name, own in matched.items() if own], names
        )
        found = {name: own | matched[name] for name, own in found.items()}
    problems += [
        f"optimizer.lora.targets match {len(own)} of the {len(layers[name])} layers of {name}, "
        "which are one array; name all of them, or none"
        for name, own in found.items()
        if 0 < len(own) < len(layers[name])
    ]
    if problems:
        raise UserError("\n".join(problems))
    return [name for name in names if found[name]]


def _pattern_problems(pattern: str, matched: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """Yields why a pattern cannot be one of the targets."""
    given, ends = f"optimizer.lora.targets: {pattern!r}", sorted({_end(name) for name in names})
    if not matched:
        yield f"{given} matches no projection; there are {', '.join(ends)}" + did_you_mean(
            pattern, ends
        )
    if any(_end(name) in HEADS for name in matched):
        yield (
            f"{given} matches the head, whose loss never holds all logits; train it in full with "
            "optimizer.lora.full"
        )


def _end(name: str) -> str:
    return name.rpartition(".")[2]


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern matches a dotted name, or the end of it from a dot on."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def check_full(model: Model, patterns: Sequence[str]) -> None:
    """Raises UserError for each pattern of `full` that matches no module of the model."""
    modules = {name.rpartition(".")[0] for name in named_parameters(model)}
    ends = sorted({module.rpartition(".")[2] for module in modules})
    problems = [
        f"optimizer.lora.full: {pattern!r} matches no module with parameters; there are "
        f"{', '.join(ends)}" + did_you_mean(pattern, ends)
        for pattern in patterns
        if not any(is_full(f"{module}.x", [pattern]) for module in modules)
    ]
    if problems:
        raise UserError("\n".join(problems))


def is_full(name: str, patterns: Sequence[str]) -> bool:
    """Whether the parameter of this name is of a module that is trained in full."""
    modules = [one.rpartition(".")[0] for one, _ in unstack_name(name)]
    return any(all(matches(one, pattern) for one in modules) for pattern in patterns)


def is_trained(name: str, lora: LoraConfig | None) -> bool:
    """Whether the parameter of this name is trained: one of the factors, or one in full."""
    return lora is None or name.endswith(FACTORS) or is_full(name, lora.full)


def draw_factors(model: Model, seed: int) -> dict[str, Array]:
    """Draws the factors of a model by name; a layer's do not depend on how layers are stacked.

    To be called in a jitted function, whose `out_shardings` say where they go.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"lora"))
    found = {}
    for name, variable in named_parameters(model).items():
        if not name.endswith(FACTORS):
            continue
        shape, own = variable.get_value().shape, jax.random.fold_in(key, _number(name))
        if label := _layers(name):
            keys = layer_keys(own, label)
            if len(label) > 1:
                draw = jax.vmap(lambda k, v=variable, s=shape[1:]: draw_factor(k, s, v.dims))
                found[name] = draw(keys)
                continue
            own = keys
        found[name] = draw_factor(own, shape, variable.dims)
    return found


def set_keys(model: AnyModel, key: Array | None) -> AnyModel:
    """Returns a copy whose factors drop out elements of their inputs; without a key, the model.

    The keys are data of the model, so that they pass through scans like the factors themselves. A
    layer's key depends only on its index and the projection, not on how layers are stacked.
    """
    owners = {name: one.lora for name, one in projections(model).items() if one.lora is not None}
    if key is None or not any(own.rate for own in owners.values()):
        return model
    changed = projections(copy := nnx.merge(*nnx.split(model)))
    for name in owners:
        own, label = jax.random.fold_in(key, _number(name)), _layers(f"{name}.")
        factors = cast(LowRank, changed[name].lora)
        factors.key = nnx.data(layer_keys(own, label) if label else own)
    return copy


def _layers(name: str) -> range | None:
    """Returns the layers whose parameters have this name; None outside of layers."""
    labels = [label for own in stack_labels([name]).values() for label in own]
    return layer_range(labels[0]) if labels else None


def _number(name: str) -> int:
    """Returns a number for a name in which the layers under a label have no part."""
    labels = [label for own in stack_labels([name]).values() for label in own]
    return zlib.crc32(name.replace(f".{labels[0]}." if labels else "\0", ".", 1).encode())


def without_factors(model: AnyModel) -> AnyModel:
    """Returns the model as it was before factors were added: the base."""
    owners = [module for module in projections(model).values() if module.lora is not None]
    if not owners:
        return model
    changed = nnx.merge(*nnx.split(model))
    for module in projections(changed).values():
        module.lora = nnx.data(None)
    return changed


def merge_lora(model: Model) -> Model:
    """Returns the model without factors, which computes the same: they are added to the kernels.

    A kernel keeps its dtype.
    """
    changed = nnx.merge(*nnx.split(model))
    for module in projections(changed).values():
        if module.lora is not None:
            kernel = module.kernel.get_value()
            # Replaced, not set: both models would share the variable.
            kernel = (kernel + module.lora.delta()).astype(kernel.dtype)
            module.kernel = cast(nnx.Param, module.kernel.replace(kernel))
            module.lora = nnx.data(None)
    changed.origin = model.origin
    return changed
