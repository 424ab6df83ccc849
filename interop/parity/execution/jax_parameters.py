"""Lazy NumPy access to a model's parameters: only those in use are in memory."""

from collections.abc import Iterator, Mapping

import numpy as np

from jaxllm.models import Model
from jaxllm.params import named_parameters
from jaxllm.sharding import to_host


class LazyWeights(Mapping[str, np.ndarray]):
    """The parameters of a model by name, each copied to the host when it is looked up."""

    def __init__(self, model: Model):
        self._variables = named_parameters(model)

    def __getitem__(self, name: str) -> np.ndarray:
        return to_host(self._variables[name].get_value())

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)
