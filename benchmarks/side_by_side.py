"""Paired timing: alternates two programs, so that other load on the machine affects both."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Comparison(NamedTuple):
    """Median measurements of jaxllm (ours) and a peer (theirs), and their ratio."""

    name: str
    ours: float
    theirs: float
    ratio: float  # median of theirs / ours over the rounds; above 1, jaxllm is better
    spread: tuple[float, float]  # first and third quartile of the ratio
    target: float
    unit: str = "s"


def compare(
    name: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    rounds: int,
    target: float,
) -> Comparison:
    """Times two functions alternately for `rounds` rounds, after one warm-up run of each."""
    ours()
    theirs()
    times = [(_seconds(ours), _seconds(theirs)) for _ in range(rounds)]
    ratios = [b / a for a, b in times]
    low, _, high = statistics.quantiles(ratios, n=4)
    return Comparison(
        name,
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        statistics.median(ratios),
        (low, high),
        target,
    )


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
