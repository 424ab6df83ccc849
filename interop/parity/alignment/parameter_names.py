"""Maps the reference's tensors and config to JAX names and layouts, by the rules of its family."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from jaxllm.config import Config
from jaxllm.interop.families import Layout, RuleTable
from jaxllm.interop.formats.lazy_tensor import TensorSource, from_array, transfer_tensor
from jaxllm.interop.loading.streaming.array_reads import find_arrays
from jaxllm.interop.rules import binding
from jaxllm.interop.rules.rule import BoundRule
from jaxllm.models import Model

from .adapters import adapter_of
from .function_model import FunctionModel
from .references.peft_models import state_of

DECAYED = ("kernel", "embedding")


def read_config(reference: Any) -> tuple[dict[str, Any], Layout, list[str]]:
    """Reads the reference's config.

    Returns:
        The values by JAX config field, the layout of the tensors, and a list of what could not be
        understood.
    """
    adapter = adapter_of(reference)
    family = adapter.family(reference)
    given = adapter.fields(reference)
    fields = family.fields(given)
    # Families look only at the names of the tensors: at the originals to tell whether the head is
    # tied, and at all of them for what modules name otherwise than files.
    state = state_of(reference)
    first: dict[int, str] = {}
    for name, tensor in state.items():
        first.setdefault(tensor.data_ptr(), name)
    originals: Any = dict.fromkeys(first.values())
    every: Any = dict.fromkeys(state)
    try:
        values, _ = family.read_config(fields, originals)
        _, layout = family.read_config(family.fields(given), every)
    except ValueError as error:
        return {}, Layout(), [*fields.finish(), str(error)]
    return values, layout, fields.finish()


def table_of(reference: Any, model: Model) -> RuleTable:
    """Returns the conversion rules from the reference's tensors to the parameters of `model`."""
    if isinstance(model, FunctionModel):
        return model.parts.table
    return table_for(reference, model.config)


def table_for(reference: Any, config: Config) -> RuleTable:
    """Returns the conversion rules from the reference's tensors to a model of this config."""
    return adapter_of(reference).family(reference).table(config, read_config(reference)[1])


def tensors_of(reference: Any) -> dict[str, np.ndarray]:
    """Returns the reference's state dict as NumPy arrays in their dtypes, tied weights included."""
    return {name: _array(tensor) for name, tensor in state_of(reference).items()}


def _array(tensor: Any) -> np.ndarray:
    """Returns the bits of a tensor; those of bfloat16 as a dtype of `ml_dtypes`."""
    import torch

    on_host = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return on_host.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return on_host.numpy()


def split_fused(
    rules: Sequence[BoundRule], tensors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Splits fused tensors into the parts that the rules name; skips those with too few rows."""

    def cut(whole: np.ndarray, part: str, start: int, count: int) -> np.ndarray:
        return whole[start : start + count]

    return binding.split_fused(rules, tensors, cut)


class Imported(Mapping[str, np.ndarray]):
    """The reference's tensors, or gradients of the same layout, in JAX names and layouts.

    Each is converted when it is read: all of them take as much memory as the model. Leaves out
    tensors that the reference lacks or has in another shape.
    """

    def __init__(self, rules: Sequence[BoundRule], tensors: Mapping[str, np.ndarray]):
        self._sources = dict(sources_of(rules, split_fused(rules, tensors)))

    def __getitem__(self, name: str) -> np.ndarray:
        source = self._sources[name]
        return source.read(source.whole)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def sources_of(
    rules: Sequence[BoundRule], parts: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, TensorSource]]:
    """Yields JAX names with lazy tensors, converted when read; otherwise as `Imported`.

    `parts` are the reference's tensors, the fused ones split by `split_fused`.
    """
    for rule, sizes in (bound for bound in rules if not any(mismatches(bound, parts))):
        transfer = rule.importing(sizes)
        wanted = {name: from_array(parts[name]) for name, _ in rule.stored.names(sizes)}
        for name, index in transfer.target.names(sizes):
            yield name, transfer_tensor(transfer, index, wanted)


def mismatches(bound: BoundRule, tensors: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Yields a message for each tensor that the reference lacks or has in another shape."""
    for name, shape in bound.stored():
        if name not in tensors:
            yield f"the reference has no {name}"
        elif tensors[name].shape != shape:
            found = tensors[name].shape
            yield f"{name} has shape {found} in the reference, {shape} in the model"


def our_names(rules: Sequence[BoundRule]) -> dict[str, list[str]]:
    """Returns the names of the JAX parameters that each stored tensor maps to."""
    found: dict[str, list[str]] = {}
    for rule, sizes in rules:
        for stored, index in rule.stored.names(sizes):
            whole = stored.partition("#")[0]
            found.setdefault(whole, []).extend(find_arrays(rule.model, index, sizes))
    return found


def is_decayed(model: Model, name: str) -> bool:
    """Whether weight decay applies to a parameter: kernels and embeddings.

    Of a function, these are the parameters with tensors of two or more dimensions.
    """
    if isinstance(model, FunctionModel):
        return name in model.parts.decayed
    return name.endswith(DECAYED)


def decayed(rules: Sequence[BoundRule], model: Model) -> set[str]:
    """Returns the stored tensors that weight decay applies to."""
    names = our_names(rules).items()
    return {stored for stored, ours in names if is_decayed(model, ours[0])}
