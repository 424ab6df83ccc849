"""Collectives of a step: what devices exchange, by kind and mesh axes."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple


class Collective(NamedTuple):
    """Collectives of one kind over the same mesh axes."""

    kind: str  # as HLO calls it, such as "all-gather"
    axes: tuple[str, ...]  # the mesh axes whose devices take part
    dtype: str  # as HLO writes it
    runs: int  # in one step
    moved: float  # bytes that one device receives in one step


def collectives_from_json(found: Iterable[dict[str, Any]]) -> tuple[Collective, ...]:
    """Returns collectives that were written as JSON, which has lists in place of tuples."""
    return tuple(Collective(**{**one, "axes": tuple(one["axes"])}) for one in found)


def share(kind: str, size: int) -> float:
    """Returns the bytes that a device receives, as a multiple of a collective's whole array.

    Args:
        kind: a gather's array is its result, a reduce-scatter's its input.
        size: the number of devices that take part.
    """
    if kind.startswith("collective"):
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (size - 1) / size


def total_by_kind(collectives: Iterable[Collective]) -> list[Collective]:
    """Adds up collectives of the same kind, axes and dtype; the largest first."""
    sums: dict[tuple, list[float]] = defaultdict(lambda: [0, 0.0])
    for one in collectives:
        entry = sums[one.kind, one.axes, one.dtype]
        entry[0] += one.runs
        entry[1] += one.moved
    totals = [
        Collective(kind, axes, dtype, int(runs), moved)
        for (kind, axes, dtype), (runs, moved) in sums.items()
    ]
    return sorted(totals, key=lambda one: -one.moved)


def moved_by_axes(collectives: Iterable[Collective]) -> dict[tuple[str, ...], float]:
    """Returns the bytes that one device receives, by mesh axes; the most first."""
    sums: dict[tuple[str, ...], float] = defaultdict(float)
    for one in collectives:
        sums[one.axes] += one.moved
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
