"""What a stage is given: our model, alone or beside the reference."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import optax

from jaxllm.interop.families import Table
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.parameter_names import table_of
from jaxllm.interop.parity.execution.recipe import Recipe
from jaxllm.interop.parity.numerics.array_store import Shelf, in_memory
from jaxllm.interop.parity.recording.sample import Sample
from jaxllm.interop.rules.rule import BoundRule
from jaxllm.models import Model, with_scanned_layers
from jaxllm.params import stacked_layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ours:
    """Our model, and the levels at which it is judged."""

    model: Model
    levels: Sequence[str]

    @cached_property
    def listed(self) -> Model:
        """The model with its layers one by one."""
        return with_scanned_layers(self.model, False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair(Ours):
    """The reference beside our model, what both are given, and how they are run."""

    reference: Any
    inputs: Inputs
    recipe: Recipe = dataclasses.field(default_factory=Recipe)
    optimizer: optax.GradientTransformation | None = None  # ours; None: the recipe's
    shelf: Shelf = in_memory  # where the outputs of all steps are kept
    sample: Sample | None = None  # what a recording keeps of each output; None: all of it

    @cached_property
    def table(self) -> Table:
        """How the reference's tensors are named, and laid out in ours."""
        return table_of(self.reference, self.model)

    @cached_property
    def rules(self) -> Sequence[BoundRule]:
        """The table's rules at the sizes of our model."""
        return self.table.bound(stacked_layers(self.listed))
