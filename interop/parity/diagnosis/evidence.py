"""The evidence on a wrong activation, and the test that an explanation of it must pass."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxllm.interop.parity.numerics import metrics

Arrays = Mapping[str, np.ndarray]

# The share of the error that an explanation may leave: rounding or, where values lie on a coarse
# grid and rounding decides between neighbors, a tenth.
EXACT, COARSE = 1e-3, 0.1


class Rows(Mapping[str, np.ndarray]):
    """Some rows of activations by path, taken when an activation is looked up."""

    def __init__(self, arrays: Arrays, rows: Sequence[int]):
        self._arrays, self._rows = arrays, list(rows)

    def __getitem__(self, path: str) -> np.ndarray:
        return self._arrays[path][self._rows]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """An activation that both sides computed from the same inputs, and the activations around it.

    Attributes:
        path: path of the activation, as in `layers.7.attn.q_proj`.
        ours: the JAX model's, computed from the reference's inputs.
        theirs: the reference's.
        threshold: threshold of the relative L2 error.
        reference: all activations of the reference, by JAX path.
        model: all activations of the JAX model, each computed from the reference's inputs.
        weights: parameters of the JAX model by name.
        rows: numbers of the rows that the activations are of; None: of all.
    """

    path: str
    ours: np.ndarray
    theirs: np.ndarray
    threshold: float
    reference: Arrays = dataclasses.field(default_factory=dict)
    model: Arrays = dataclasses.field(default_factory=dict)
    weights: Arrays = dataclasses.field(default_factory=dict)
    rows: Sequence[int] | None = None

    @property
    def parent(self) -> str:
        """The path of the module that the activation is in."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The activation's name in its module."""
        return self.path.rpartition(".")[2]

    def sibling(self, name: str) -> np.ndarray | None:
        """Returns another activation of the reference in the same module."""
        return self.reference.get(f"{self.parent}.{name}" if self.parent else name)

    def parameter(self, name: str) -> np.ndarray | None:
        """Returns a parameter of the module that returns the activation; None if there is none."""
        return self.weights.get(f"{self.path}.{name}")

    @property
    def sizes(self) -> dict[str, int]:
        """The model's `embed_dim` and `head_dim`, as far as the activations reveal them."""
        heads = next((x for path, x in self.reference.items() if path.endswith(".attn.q")), None)
        embed = self.reference.get("embed")
        return {
            **({} if embed is None else {"embed_dim": embed.shape[-1]}),
            **({} if heads is None else {"head_dim": heads.shape[-1]}),
        }


class Explanation(NamedTuple):
    """A hint, `words`, and two arrays that are equal if it is true."""

    one: np.ndarray
    other: np.ndarray
    words: str


Explain = Callable[[Evidence], Iterator[Explanation]]


def first_true(evidence: Evidence, table: Iterable[Explain]) -> str | None:
    """Returns the words of the first explanation that holds; None if none does.

    An explanation holds if it leaves only rounding of the error. If there is none, one that leaves
    at most a tenth of the error is accepted.

    Args:
        evidence: the wrong activation.
        table: functions that yield explanations, the most specific first.
    """
    error = metrics.masked_relative_l2(evidence.ours, evidence.theirs)
    with np.errstate(all="ignore"):  # divisions by zero give explanations that do not hold
        weighed = [
            (metrics.masked_relative_l2(one, other), words)
            for explain in table
            for one, other, words in explain(evidence)
            if one.size
        ]
    exact = min(max(4 * evidence.threshold, EXACT * error), COARSE * error)
    for limit in (exact, COARSE * error):
        if found := next((words for left, words in weighed if left <= limit), None):
            return found
    return None
