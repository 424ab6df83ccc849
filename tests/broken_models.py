"""Models with one planted bug: a changed parameter or config field."""

from collections.abc import Callable, Mapping
from typing import Any

from jax import Array

from jaxllm.config import with_fields
from jaxllm.models import Model, build_abstract
from jaxllm.params import named_parameters, with_arrays


def arrays_of(model: Model) -> dict[str, Array]:
    """Returns the parameters by name."""
    return {name: variable.get_value() for name, variable in named_parameters(model).items()}


def changed(model: Model, name: str, function: Callable[[Array], Array]) -> Model:
    """Returns the model with `function` applied to one parameter."""
    arrays = arrays_of(model)
    return with_arrays(model, {**arrays, name: function(arrays[name])})


def configured(model: Model, changes: Mapping[str, Any]) -> Model:
    """Returns a model with the same weights and a changed config."""
    config = with_fields(model.config, changes)
    return with_arrays(build_abstract(config), arrays_of(model))
