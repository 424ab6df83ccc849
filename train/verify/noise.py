"""Equivalent single-device evaluations of a training step, which rounding alone sets apart."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxllm.config import Config, stacks_of
from jaxllm.models import build_abstract
from jaxllm.params import named_parameters, unstack_name

from .variants import Arrays, Batch, Program, Step, find_experts

ULP = 2.0**-23  # relative spacing of float32 numbers
EQUIVALENTS = 6  # of a step, unless a difference needs more


def equivalent_steps(
    program: Program, config: Config, weights: Arrays, batch: Batch, seed: int, count: int
) -> Iterator[Step]:
    """Yields the step with perturbed weights and its sums in other orders, several times.

    Args:
        program: the single-device step.
        config: the model's config.
        weights: parameters by name, layers unstacked; perturbed by at most one ULP.
        batch: its rows are permuted for the other orders.
        seed: for the perturbations and the permutations.
        count: how many times.
    """
    rng = np.random.default_rng(seed)
    experts = find_experts(config)
    for _ in range(count):
        perturbed = {
            name: x * np.float32(1 + ULP * rng.uniform(-1, 1, x.shape))
            for name, x in weights.items()
        }
        shuffle = Shuffle(config, rng)
        rows = rng.permutation(len(batch["mask"]))
        if experts is not None and experts.capacity is not None:
            rows = np.sort(rows)  # with a capacity, row order decides which tokens an expert takes
        shuffled = {name: x[rows] for name, x in batch.items()}
        yield shuffle.undo(program(shuffle.apply(perturbed), shuffled))


class Shuffle:
    """Permutes the embed and MLP dimensions (D, F): the same model, with sums in another order."""

    def __init__(self, config: Config, rng: np.random.Generator):
        # Sinusoidal position embeddings fix the order of D.
        self._letters = "F" if "sinusoidal" in _position_kinds(config) else "DF"
        self._dims = {
            own: variable.dims
            for name, variable in named_parameters(build_abstract(config)).items()
            for own, _ in unstack_name(name)
        }
        self._orders: dict[tuple[str, int], np.ndarray] = {}
        self._rng = rng

    def apply(self, arrays: Arrays) -> Arrays:
        """Permutes parameters."""
        return {name: self._permute(name, x, lambda order: order) for name, x in arrays.items()}

    def undo(self, step: Step) -> Step:
        """Restores the original order in every array of a step."""
        restored: dict[str, Any] = {
            field: {name: self._permute(name, x, np.argsort) for name, x in arrays.items()}
            for field, arrays in step._asdict().items()
            if isinstance(arrays, dict)
        }
        return step._replace(**restored)

    def _permute(
        self, name: str, x: np.ndarray, indices: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        # The image encoder reshapes its dimensions, and image_proj's F is one of them.
        letters = "" if name.startswith("vision.") else self._letters
        letters = letters.replace("F", "") if name.startswith("image_proj.") else letters
        for axis, letter in enumerate(self._dims[name]):
            if letter in letters:
                key = letter, x.shape[axis]
                if key not in self._orders:
                    self._orders[key] = self._rng.permutation(key[1])
                x = np.take(x, indices(self._orders[key]), axis)
        return x


def _position_kinds(config: Config) -> set[str]:
    return {stack.positions.kind for stack in stacks_of(config)}
