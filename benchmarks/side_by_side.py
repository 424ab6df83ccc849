"""Two programs timed in turn, so that whatever else the machine does slows both alike."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Comparison(NamedTuple):
    """Seconds of each, or another unit, and how many times as fast (or small) ours is."""

    name: str
    ours: float
    theirs: float
    ratio: float  # median of theirs / ours over the rounds
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
    """Times both `rounds` times, alternating, after one run of each that does not count."""
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
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun
