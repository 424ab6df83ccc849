"""Other ways to take a training step on one device that are just as right: how far they land is
its noise.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxllm.config import Config, TwoStackConfig
from jaxllm.models import build_abstract
from jaxllm.params import named_parameters, unstack_name

from .variants import Arrays, Batch, Program, Step, find_experts

ULP = 2.0**-23
SHUFFLES = 2


def equivalent_steps(
    program: Program, config: Config, weights: Arrays, batch: Batch, seed: int
) -> Iterator[Step]:
    """The step with other roundings, and with its sums taken in other orders."""
    rng = np.random.default_rng(seed)
    experts = find_experts(config)
    nudged = {
        name: x * np.float32(1 + ULP * rng.uniform(-1, 1, x.shape)) for name, x in weights.items()
    }
    yield program(nudged, batch)
    for _ in range(SHUFFLES):
        shuffle = Shuffle(config, rng)
        rows = rng.permutation(len(batch["mask"]))
        if experts is not None and experts.capacity is not None:
            rows = np.sort(rows)  # their order decides which tokens an expert takes
        shuffled = {name: x[rows] for name, x in batch.items()}
        yield shuffle.undo(program(shuffle.apply(weights), shuffled))


class Shuffle:
    """The widths of a model in another order: the same model, whose sums are taken otherwise."""

    def __init__(self, config: Config, rng: np.random.Generator):
        # Those of a sinusoidal position's vector have their places.
        self._letters = "F" if "sinusoidal" in _positions(config) else "DF"
        self._dims = {
            own: variable.dims
            for name, variable in named_parameters(build_abstract(config)).items()
            for own, _ in unstack_name(name)
        }
        self._orders: dict[tuple[str, int], np.ndarray] = {}
        self._rng = rng

    def apply(self, arrays: Arrays) -> Arrays:
        """Parameters in the other order."""
        return {name: self._taken(name, x, lambda order: order) for name, x in arrays.items()}

    def undo(self, step: Step) -> Step:
        """The step in the model's own order."""
        own: dict[str, Any] = {
            field: {name: self._taken(name, x, np.argsort) for name, x in arrays.items()}
            for field, arrays in step._asdict().items()
            if isinstance(arrays, dict)
        }
        return step._replace(**own)

    def _taken(
        self, name: str, x: np.ndarray, places: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        for axis, letter in enumerate(self._dims[name]):
            if letter in self._letters:
                key = letter, x.shape[axis]
                if key not in self._orders:
                    self._orders[key] = self._rng.permutation(key[1])
                x = np.take(x, places(self._orders[key]), axis)
        return x


def _positions(config: Config) -> set[str]:
    stacks = [config.encoder, config.decoder] if isinstance(config, TwoStackConfig) else [config]
    return {stack.positions.kind for stack in stacks}
