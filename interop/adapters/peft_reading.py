"""Reads a folder of a PEFT adapter: `adapter_config.json` and `adapter_model.safetensors`."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.interop.formats import safetensors_file
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.loading.model_arrays import apply_rules
from jaxllm.interop.rules.rule import BoundRule
from jaxllm.lora.attach import FACTORS, factor_shapes, projections
from jaxllm.models import Model

from .adapter import Adapter
from .peft_config import NESTED, PREFIX, WEIGHTS, A, B, read_peft_config
from .places import Place, find_places, group_places, module_rules

Matrix = np.ndarray


def read_adapter(folder: Path, model: Model) -> Adapter:
    """Reads an adapter of PEFT.

    Args:
        folder: the adapter.
        model: its base; may be without weights.

    Raises:
        CheckpointError: the adapter has what jaxllm cannot compute, or does not fit the model.
            Lists every tensor that is not understood.
    """
    config = read_peft_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}; save the adapter with safetensors")
    stored = safetensors_file.read_header(folder / WEIGHTS)
    left = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}
    table, rules = module_rules(model)
    places = group_places(find_places(model, rules))
    scales, arrays = factors_of(places, left, model, config.scale_of, folder)
    full = set(left)
    arrays |= _read_full(rules, left)
    for copy, original in table.tied.items():  # such as a head, which PEFT saves as well
        if original in full - set(left):
            left.pop(copy, None)
    if left:
        names = ", ".join(sorted(left)[:5])
        raise CheckpointError(f"{len(left)} tensors fit no module of the model: {names}", folder)
    return Adapter(
        scales=scales,
        arrays=arrays,
        base=config.base_model_name_or_path or "",
        dropout=config.lora_dropout,
        rslora=config.use_rslora,
    )


def factors_of(
    places: Mapping[str, Sequence[Place]],
    left: dict[str, Any],
    model: Model,
    scale_of: Callable[[str, int], float],
    place: Path | str = "the adapter",
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns the scale of each projection, and both of its factors by our names.

    Args:
        places: of the projections, by tensor.
        left: PEFT's tensors by name; factors are removed.
        model: the base; may be without weights.
        scale_of: the scale of a module by its name and rank.
        place: what messages name.
    """
    scales: dict[str, float] = {}
    parts: dict[str, dict[tuple[int, ...], tuple[Matrix, Matrix]]] = {}
    for own in places.values():
        keys = factor_keys(own[0], left)
        if keys is None:
            continue
        a, b = (_read(left.pop(key)) for key in keys)
        rank = a.shape[0] // own[0].num_experts
        _check_shapes(own[0], a, b, place)
        scale = scale_of(own[0].module, rank)
        for one in own:
            _check_scale(one, scales.setdefault(one.projection, scale), scale, place)
            parts.setdefault(one.projection, {})[one.position] = _cut(one, a, b)
    arrays = {name: x for name, own in parts.items() for name, x in _stack(name, own, model)}
    return scales, arrays


def _read(tensor: Any) -> Matrix:
    """Reads a tensor in float32, or in float64 if it is that."""
    found: Matrix = tensor.read([(0, size) for size in tensor.shape])
    return found.astype(np.result_type(found.dtype, np.float32))


def factor_keys(place: Place, stored: Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns the names of the factors of a tensor, if they are stored."""
    names = [place.module]
    if place.num_experts > 1:  # PEFT names the module, and nests its adapted parameters
        module, _, _ = place.module.rpartition(".")
        nested = [module, f"{module}{NESTED}"]
        names = [name for name in nested if f"{name}{A}" in stored and _fits(place, name, stored)]
    return next(((f"{name}{A}", f"{name}{B}") for name in names if f"{name}{A}" in stored), None)


def _fits(place: Place, name: str, stored: Mapping[str, Any]) -> bool:
    shapes = stored[f"{name}{A}"].shape[1], stored[f"{name}{B}"].shape[0]
    return bool(shapes == place.shape)


def _check_shapes(place: Place, a: Matrix, b: Matrix, folder: Path | str) -> None:
    if (a.shape[1], b.shape[0]) != place.shape or a.shape[0] != b.shape[1]:
        raise CheckpointError(
            f"{place.module}: lora_A is {list(a.shape)} and lora_B {list(b.shape)}, but the module "
            f"maps {place.shape[0]} inputs to {place.shape[1]} outputs",
            folder,
        )


def _check_scale(place: Place, first: float, scale: float, folder: Path | str) -> None:
    if not math.isclose(first, scale, rel_tol=1e-6):
        raise CheckpointError(
            f"{place.module} is scaled by {scale:g} and other layers of {place.projection}, which "
            f"are one array, by {first:g}",
            folder,
        )


def _cut(place: Place, a: Matrix, b: Matrix) -> tuple[Matrix, Matrix]:
    """Returns the factors of one matrix, (inputs, rank) and (rank, outputs)."""
    if place.num_experts > 1:  # (E R) I, and O (R E)
        a = a.reshape(place.num_experts, -1, a.shape[1])[place.expert]
        b = b.reshape(b.shape[0], -1, place.num_experts)[..., place.expert]
    return a[:, place.inputs].T, b[place.outputs].T


def _stack(
    name: str, parts: Mapping[tuple[int, ...], tuple[Matrix, Matrix]], model: Model
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields both factors of a projection; a smaller rank and layers without any get zeros."""
    rank = max(a.shape[1] for a, _ in parts.values())
    shapes = factor_shapes(projections(model)[name], rank)
    for number, (end, shape) in enumerate(zip(FACTORS, shapes, strict=True)):
        whole = np.zeros(shape, next(iter(parts.values()))[number].dtype)
        for index, factors in parts.items():
            part, place = factors[number], whole[index]
            own = part.shape[1 - number]
            place = place[..., :own] if number == 0 else place[:own]
            place[...] = part.reshape(place.shape)
        yield f"{name}{end}", whole


def _read_full(rules: Sequence[BoundRule], left: dict[str, Any]) -> dict[str, np.ndarray]:
    """Reads the parameters that were trained in full; removes their tensors from `left`."""
    found: dict[str, np.ndarray] = {}
    for bound in rules:
        names = [name for name, _ in bound.stored()]
        if all(name in left for name in names):
            own = {name: left.pop(name) for name in names}
            found |= {k: x.read(x.whole) for k, x in apply_rules([bound], own).items()}
    return found
