"""The sides of a comparison: the JAX model alone, or together with its reference."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any, TypeVar

import numpy as np
import optax

from jaxllm.interop.families import RuleTable
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.parameter_names import Imported, table_of
from jaxllm.interop.parity.alignment.references.peft_models import Factors, by_base_name, is_adapted
from jaxllm.interop.parity.execution.recipe import Recipe
from jaxllm.interop.parity.execution.simulated_rounding import DRAWS
from jaxllm.interop.parity.memory.array_store import ArrayStore, in_memory
from jaxllm.interop.parity.recording.sample import Sample
from jaxllm.interop.rules.rule import BoundRule
from jaxllm.models import Model, with_scanned_layers
from jaxllm.params import stacked_layers

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JaxSide:
    """The JAX model and the levels at which it is judged."""

    model: Model
    levels: Sequence[str]

    @cached_property
    def unstacked(self) -> Model:
        """The model with unstacked layers."""
        return with_scanned_layers(self.model, False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(JaxSide):
    """One comparison: the JAX model and its reference, their inputs, and how they are run."""

    reference: Any
    inputs: Inputs
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    optimizer: optax.GradientTransformation | None = None  # of the JAX side; None: the recipe's
    store: ArrayStore = in_memory  # the store for all activations
    sample: Sample | None = None  # which elements of each output are recorded; None: all
    draws: int = DRAWS  # runs of the reference with simulated rounding
    recordings: dict[str, Any] | None = None  # of the reference, kept for other comparisons

    def of_reference(self, run: Callable[[], Result], *key: object) -> Result:
        """Runs the reference, or returns what an earlier comparison kept.

        Args:
            run: runs the reference.
            key: what its result depends on, besides the reference.
        """
        if self.recordings is None:  # then the result is freed when it has been judged: it is large
            return run()
        name = sha256(repr((id(self.reference), self.draws, *key)).encode()).hexdigest()
        if name not in self.recordings:
            self.recordings[name] = run()
        return self.recordings[name]

    @cached_property
    def table(self) -> RuleTable:
        """The conversion rules from the reference's tensors to the model's parameters."""
        return table_of(self.reference, self.model)

    @cached_property
    def factors(self) -> Factors | None:
        """Where the factors of a reference with an adapter belong in the model."""
        return Factors(self.reference, self.unstacked) if is_adapted(self.reference) else None

    def in_jax_names(self, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Returns tensors of the reference, or gradients like them, in JAX names and layouts."""
        if self.factors is None:
            return Imported(self.rules, arrays)
        named = by_base_name(arrays)
        return {**Imported(self.rules, named), **self.factors.arrays(arrays)}

    @cached_property
    def rules(self) -> Sequence[BoundRule]:
        """The table's rules at the sizes of the model."""
        return self.table.bound(stacked_layers(self.unstacked))
