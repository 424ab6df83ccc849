"""Training that goes on from an adapter: its base with its factors, and its settings of LoRA."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh

from jaxllm.errors import UserError
from jaxllm.hub import local_path
from jaxllm.lora.attach import is_full, projections
from jaxllm.lora.config import LoraConfig
from jaxllm.lora.given import base_of, check_factors
from jaxllm.models import Model
from jaxllm.params import named_parameters, unstack_name

from .adapter import Adapter
from .merging import find_base, is_adapter, load_adapter, open_adapter
from .targets import as_patterns, in_our_names


def load_start(
    path: str | Path,
    lora: LoraConfig | None,
    *,
    mesh: Mesh | None = None,
    strict: bool = True,
    allow: Sequence[str] = (),
) -> tuple[Model, LoraConfig]:
    """Loads an adapter with its base, to be trained on.

    Args:
        path: a folder of PEFT, or a run with LoRA.
        lora: the settings of the new run; None: those of the adapter.
        mesh: as for `load_pretrained`; likewise the rest, for the base.
        strict: whether to reject what is not understood.
        allow: exceptions.

    Returns:
        The model with its factors, and the settings under our names.

    Raises:
        CheckpointError: the adapter or its base cannot be read.
        UserError: the settings differ from the adapter's, or the adapter has several ranks or
            scales, which a run has not. Lists every difference.
    """
    dtype = "float32" if lora is None else lora.base_dtype
    model = load_adapter(path, mesh=mesh, dtype=dtype, strict=strict, allow=allow)
    base = base_of(model)
    adapter = open_adapter(local_path(path), base)
    found = lora_of(adapter, base)
    if lora is None:
        return model, found
    given = in_our_names(lora, base)
    check_factors(model, given)
    _check_full(adapter, given, base)
    return model, given


def find_checkpoint(start: str | Path) -> Path:
    """Returns the whole model that a run starts from: of an adapter, its base."""
    place = local_path(start)
    return find_base(place, None) if is_adapter(place) else place


def lora_of(adapter: Adapter, base: Model) -> LoraConfig:
    """Returns the settings that an adapter was trained with, and the base in float32.

    Raises UserError if it has several ranks or scales.
    """
    ranks, scales = sorted(set(adapter.ranks.values())), sorted(set(adapter.scales.values()))
    if len(ranks) > 1 or len(scales) > 1:
        shown = ", ".join(map(str, ranks)), ", ".join(f"{scale:g}" for scale in scales)
        raise UserError(
            f"the adapter to start from has the ranks {shown[0]} and the scales {shown[1]}; a run "
            "has one of each: merge it (`jaxllm convert --merge`) and begin with a new adapter"
        )
    kernels = [one for name in projections(base) for one in _each(f"{name}.kernel")]
    modules = [one for name in named_parameters(base) for one in _each(name)]
    targets = {one for name in adapter.scales for one in _each(f"{name}.kernel")}
    full = {one for name in adapter.full for one in _each(name)}
    settings = LoraConfig(
        targets=as_patterns(targets, kernels),
        full=as_patterns(full, modules),
        dropout=adapter.dropout,
        rslora=adapter.rslora,
    )
    if not ranks:
        return settings
    settings = dataclasses.replace(settings, rank=ranks[0])
    return dataclasses.replace(settings, alpha=scales[0] / (settings.scale / settings.alpha))


def _each(name: str) -> list[str]:
    """Returns the modules of a parameter, one for each layer."""
    return [one.rpartition(".")[0] for one, _ in unstack_name(name)]


def _check_full(adapter: Adapter, lora: LoraConfig, base: Model) -> None:
    """Raises UserError unless the same modules are trained in full."""
    wanted = {name for name in named_parameters(base) if is_full(name, lora.full)}
    if wanted != set(adapter.full):
        names = [", ".join(sorted(one)) or "none" for one in (wanted, adapter.full)]
        raise UserError(
            f"the adapter to start from: optimizer.lora.full matches {names[0]}, but it has "
            f"{names[1]}"
        )
