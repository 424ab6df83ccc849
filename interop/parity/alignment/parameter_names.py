"""The reference's names and layouts, and its tensors brought into ours, by its family's rules."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxllm.config import Config
from jaxllm.interop.families import Fields, Layout, Table
from jaxllm.interop.formats.lazy_tensor import TensorSource, from_array, transfer_tensor
from jaxllm.interop.loading.plan import find_arrays
from jaxllm.interop.rules.bijection import fused_parts
from jaxllm.interop.rules.rule import BoundRule, Rule
from jaxllm.models import Model

from .adapters import calling_of

DECAYED = ("kernel", "embedding")


def read_config(reference: Any) -> tuple[dict[str, Any], Layout, list[str]]:
    """The reference's config in our fields, how its tensors lie, and what is not understood."""
    calling = calling_of(reference)
    fields = Fields(calling.fields(reference))
    try:
        # Of the tensors, these families look at the names alone.
        names: Any = dict.fromkeys(reference.state_dict())
        values, layout = calling.family(reference).read_config(fields, names)
    except ValueError as error:
        return {}, Layout(), [*fields.finish(), str(error)]
    return values, layout, fields.finish()


def table_of(reference: Any, model: Model) -> Table:
    """How the reference's tensors are named, and laid out in ours."""
    return table_for(reference, model.config)


def table_for(reference: Any, config: Config) -> Table:
    """How the tensors of a reference of this config are named, and laid out in ours."""
    table = calling_of(reference).family(reference).table(config, read_config(reference)[1])
    return with_own_head(table, reference)


def with_own_head(table: Table, reference: Any) -> Table:
    """The table with the head's name in memory, where checkpoints have another for it."""
    state, head = reference.state_dict(), calling_of(reference).head(reference)
    found = (name for name, module in reference.named_modules() if module is head)
    own = f"{next(found, '')}.weight"

    def rename(name: str) -> str:
        return own if name not in state and own in state else name

    rules = tuple(
        Rule(dataclasses.replace(rule.stored, name=rename(rule.stored.name)), rule.model)
        if rule.model.name == "lm_head.kernel"
        else rule
        for rule in table.rules
    )
    tied = {rename(copy): original for copy, original in table.tied.items()}
    return dataclasses.replace(table, rules=rules, tied=tied)


def tensors_of(reference: Any) -> dict[str, np.ndarray]:
    """The reference's state, as NumPy sees it, tied copies included."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in reference.state_dict().items()}


def split_fused(
    rules: Sequence[BoundRule], tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The tensors as the rules name them, of fused ones the parts, as far as they have the rows."""
    split = dict(tensors)
    for fused, parts in fused_parts(rules).items():
        rows = [shape[0] for shape in parts.values()]
        whole = tensors.get(fused)
        if whole is None or not whole.ndim or len(whole) != sum(rows):
            continue
        del split[fused]
        stops = np.cumsum(rows)
        for part, stop, count in zip(parts, stops, rows, strict=True):
            split[part] = whole[stop - count : stop]
    return split


def imported(
    rules: Sequence[BoundRule], tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The reference's tensors, or what is laid out as they are, by our names and in our layout.

    Without those that it does not have, or has in another shape.
    """
    sources = sources_of(rules, split_fused(rules, tensors))
    return {name: source.read(source.whole) for name, source in sources}


def sources_of(
    rules: Sequence[BoundRule], parts: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, TensorSource]]:
    """As `imported`, each to be made when it is read, of tensors that are not fused."""
    for rule, sizes in (bound for bound in rules if not any(unfit(bound, parts))):
        transfer = rule.importing(sizes)
        wanted = {name: from_array(parts[name]) for name, _ in rule.stored.names(sizes)}
        for name, index in transfer.target.names(sizes):
            yield name, transfer_tensor(transfer, index, wanted)


def unfit(bound: BoundRule, tensors: Mapping[str, np.ndarray]) -> Iterator[str]:
    """What the reference lacks for a rule, or has in another shape."""
    for name, shape in bound.stored():
        if name not in tensors:
            yield f"the reference has no {name}"
        elif tensors[name].shape != shape:
            yield f"{name} of the reference is {tensors[name].shape}, the model has {shape}"


def our_names(rules: Sequence[BoundRule]) -> dict[str, list[str]]:
    """By the name of each stored tensor, the parameters that it has numbers of."""
    found: dict[str, list[str]] = {}
    for rule, sizes in rules:
        for stored, index in rule.stored.names(sizes):
            whole = stored.partition("#")[0]
            found.setdefault(whole, []).extend(find_arrays(rule.model, index, sizes))
    return found


def decayed(rules: Sequence[BoundRule]) -> set[str]:
    """The stored tensors that weight decay is for: kernels and embeddings."""
    names = our_names(rules).items()
    return {stored for stored, ours in names if ours[0].endswith(DECAYED)}
