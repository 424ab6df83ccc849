"""LoRA's targets under PyTorch's names, such as `c_attn`, as patterns of our projections."""

import dataclasses
import logging
import re
from collections.abc import Collection, Iterator, Sequence

from jaxllm.errors import CheckpointError
from jaxllm.lora.attach import is_full, matches, projections
from jaxllm.lora.config import ALL_LINEAR, LoraConfig
from jaxllm.models import Model
from jaxllm.params import named_parameters, unstack_name

from .places import Place, find_places, module_rules

logger = logging.getLogger(__name__)


def in_our_names(lora: LoraConfig, model: Model) -> LoraConfig:
    """Returns a config whose targets and full modules have our names.

    A pattern that matches one of ours is kept. A name of PEFT is replaced by the projections that
    are stored in that module: `qkv_proj` by q_proj, k_proj and v_proj. What matches neither is
    kept, for `add_lora` to report.

    Args:
        lora: the config.
        model: the base; may be without weights.
    """
    ours = [one for name in projections(model) for one, _ in unstack_name(f"{name}.kernel")]
    kernels = [name.removesuffix(".kernel") for name in ours]
    targets, full = list(lora.targets), list(lora.full)
    if any(not _is_ours(pattern, kernels) for pattern in targets):
        try:
            targets = list(_targets(targets, kernels, model))
        except CheckpointError as error:
            logger.debug("no names of PyTorch: %s", error)
    names = list(named_parameters(model))
    if any(not any(is_full(name, [pattern]) for name in names) for pattern in full):
        full = list(_full(full, names, model))
    return dataclasses.replace(
        lora, targets=tuple(dict.fromkeys(targets)), full=tuple(dict.fromkeys(full))
    )


def _is_ours(pattern: str, kernels: Sequence[str]) -> bool:
    return pattern == ALL_LINEAR or any(matches(name, pattern) for name in kernels)


def _targets(patterns: Sequence[str], kernels: Sequence[str], model: Model) -> Iterator[str]:
    _, rules = module_rules(model)
    places = find_places(model, rules)
    for pattern in patterns:
        theirs = [place for place in places if matches(place.module, pattern)]
        if _is_ours(pattern, kernels) or not theirs:
            yield pattern
            continue
        names = {name for place in theirs for name in _layers(place)}
        yield from as_patterns(names, kernels)


def as_patterns(names: Collection[str], known: Sequence[str]) -> tuple[str, ...]:
    """Returns patterns that match these names and no other known one."""
    found: dict[str, None] = {}
    for name in sorted(names):
        every = re.sub(r"layers\.\d+\.", "layers.*.", name)
        is_every = {one for one in known if matches(one, every)} <= set(names)
        found[every if is_every else name] = None
    return tuple(found)


def _layers(place: Place) -> Iterator[str]:
    """Yields the names of the layer that a place is of."""
    kernels = unstack_name(f"{place.projection}.kernel")
    for name, layer in kernels:
        if layer is None or layer == place.position[0]:
            yield name.removesuffix(".kernel")


def _full(patterns: Sequence[str], names: Sequence[str], model: Model) -> Iterator[str]:
    _, rules = module_rules(model)
    for pattern in patterns:
        if any(is_full(name, [pattern]) for name in names):
            yield pattern
            continue
        found = [
            one.rpartition(".")[0]
            for bound in rules
            if any(matches(name.removesuffix(".weight"), pattern) for name, _ in bound.stored())
            for array, _ in bound.rule.model.names(bound.sizes)
            for one, _ in unstack_name(array)
        ]
        yield from found or [pattern]
