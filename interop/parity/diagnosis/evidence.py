"""What is known of a step that is wrong by itself, and how an explanation of it is weighed."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jaxllm.interop.parity.numerics import metrics

Arrays = Mapping[str, np.ndarray]

# Of the error, what an explanation may leave: rounding, or where that decides between neighbours
# on a coarse grid, a tenth.
EXACT, COARSE = 1e-3, 0.1


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A step that both computed from the reference's own steps before it, and all around it."""

    path: str  # as in `layers.7.attn.q_proj`
    ours: np.ndarray
    theirs: np.ndarray
    threshold: float  # of the relative L2 error
    given: Arrays = dataclasses.field(default_factory=dict)  # the reference's steps, by our paths
    found: Arrays = dataclasses.field(default_factory=dict)  # ours, each given the reference's
    weights: Arrays = dataclasses.field(default_factory=dict)  # our parameters by name

    @property
    def parent(self) -> str:
        """The module that the step is in."""
        return self.path.rpartition(".")[0]

    @property
    def step(self) -> str:
        """The step's name in its module."""
        return self.path.rpartition(".")[2]

    def beside(self, step: str) -> np.ndarray | None:
        """What another step of the same module returned in the reference."""
        return self.given.get(f"{self.parent}.{step}" if self.parent else step)

    def parameter(self, name: str) -> np.ndarray | None:
        """A parameter of the step."""
        return self.weights.get(f"{self.path}.{name}")

    @property
    def sizes(self) -> dict[str, int]:
        """The model's dimensions that arrays tell."""
        heads = next((x for path, x in self.given.items() if path.endswith(".attn.q")), None)
        embed = self.given.get("embed")
        return {
            **({} if embed is None else {"embed_dim": embed.shape[-1]}),
            **({} if heads is None else {"head_dim": heads.shape[-1]}),
        }


class Explanation(NamedTuple):
    """Two arrays that are equal if the words are true."""

    one: np.ndarray
    other: np.ndarray
    words: str


Explain = Callable[[Evidence], Iterator[Explanation]]


def first_true(evidence: Evidence, table: Iterable[Explain]) -> str | None:
    """The words of the first explanation, of the most specific ones first, that holds.

    It must leave no more than rounding of the error, or failing that a tenth of it.
    """
    error = metrics.relative_l2(evidence.ours, evidence.theirs)
    with np.errstate(all="ignore"):  # what is divided by zero explains nothing
        weighed = [
            (metrics.relative_l2(one, other), words)
            for explain in table
            for one, other, words in explain(evidence)
            if one.size
        ]
    exact = min(max(4 * evidence.threshold, EXACT * error), COARSE * error)
    for limit in (exact, COARSE * error):
        if found := next((words for left, words in weighed if left <= limit), None):
            return found
    return None
